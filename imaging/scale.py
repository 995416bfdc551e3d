"""Which factors experts may have, and where a span of LR pixels lies in an image that much larger."""

from __future__ import annotations

# An expert's factor is its network's own. All experts of a cache, a fusion and an ensemble have the same one, which
# these take from their experts and record; where nothing is recorded it is the benchmarks' and NTIRE's: four.
SCALE = 4
SCALES = (2, 3, 4)


def enlarged(part: slice, scale: int = SCALE) -> slice:
    """Rows or columns of an LR image -> the same content's rows or columns at `scale` times the size."""
    return slice(scale * part.start, scale * part.stop)
