"""The one factor of the whole program, and where a span of LR pixels lies in an image that much larger."""

from __future__ import annotations

# Every expert, cache and fusion here enlarges four times: the factor of the benchmarks' LRx4 files and of NTIRE's
# track. Native networks and degradations take other factors as an argument; what joins rooms does not.
SCALE = 4


def enlarged(part: slice, scale: int = SCALE) -> slice:
    """Rows or columns of an LR image -> the same content's rows or columns at `scale` times the size."""
    return slice(scale * part.start, scale * part.stop)
