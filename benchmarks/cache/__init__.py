"""The cache: bytes, overhead, reading and training speed against what it replaces."""
