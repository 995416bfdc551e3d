"""Experts' outputs -> HDF5 items, one per image -> training batches."""
