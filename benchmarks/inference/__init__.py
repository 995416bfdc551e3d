"""infer.py as a whole: time, memory, seams of tiles, the curve of a budget, thresholds of the input check."""
