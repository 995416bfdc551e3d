"""One training run from start to export: steps, state, checkpoints, log."""
