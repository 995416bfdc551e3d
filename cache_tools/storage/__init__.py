"""Caches in object storage: addresses, one bucket's files, a bounded local copy of what is read."""
