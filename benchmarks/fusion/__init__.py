"""A fusion training step: multiply-adds, time and memory against the seed's layout."""
