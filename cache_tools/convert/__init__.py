"""Caches and older or foreign files -> other caches: merge, repack, import."""
