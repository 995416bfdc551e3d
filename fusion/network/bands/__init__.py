"""Phases 2 and 3: an LR image -> frequency bands and a map of attention across them."""
