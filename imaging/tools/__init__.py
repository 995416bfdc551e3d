"""The commands of `python -m imaging`: samples, comparisons, packing, the check against MATLAB."""
