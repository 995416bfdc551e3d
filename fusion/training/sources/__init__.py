"""Caches, image folders or running experts -> training batches, the same for the same seed."""
