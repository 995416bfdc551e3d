"""Experts' outputs, cached or live -> one better image. Knows tensors and caches, never an expert."""
