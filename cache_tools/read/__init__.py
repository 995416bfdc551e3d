"""A cache -> whole images or random training batches."""
