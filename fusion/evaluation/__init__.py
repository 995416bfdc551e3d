"""Finished images, caches and configs -> numbers: headroom, scores of folders, ablation."""
