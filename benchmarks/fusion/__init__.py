"""A fusion training step: multiply-adds, time and memory against the original layout."""
