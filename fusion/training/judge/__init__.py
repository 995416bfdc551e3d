"""Held-out images -> scores, how far to trust what was learned, and whether it may replace the base."""
