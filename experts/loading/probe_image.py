"""A size -> a seeded image to try networks on: smooth with some detail, so that what they do to it can be compared."""

from __future__ import annotations

import torch


def probe_image(height: int, width: int) -> torch.Tensor:
    """(1, 3, height, width) float32 in [0, 1]; the same for everyone."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (
        torch.nn.functional.interpolate(
            torch.rand(1, 3, max(1, height // cell), max(1, width // cell), generator=generator),
            (height, width),
            mode="bilinear",
            align_corners=False,
        )
        for cell in (8, 1)
    )
    return (0.7 * coarse + 0.3 * fine).clamp(0, 1)
