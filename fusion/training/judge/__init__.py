"""Held-out images -> scores, shrinkage of what was learned, and the gate that lets it replace the base."""
