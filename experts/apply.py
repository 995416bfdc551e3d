"""An image file or folder and one expert -> its 4x images as PNG files; one bad image does not stop the others."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tqdm import tqdm

from imaging.files import in_words, list_images, list_others, read_picture, write_picture
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic

if TYPE_CHECKING:
    from pathlib import Path

    from experts.spec import Expert

log = logging.getLogger(__name__)


def apply(expert: Expert, source: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Run the expert on every image of `source`; return the files written and the refusals met."""
    inputs = list_images(source) if source.is_dir() else [source]
    root = source if source.is_dir() else source.parent
    if source.is_dir() and (others := list_others(source)):
        log.warning("%s", in_words(others, source))
    written: list[Path] = []
    refused: list[str] = []
    for path in tqdm(inputs, desc=expert.name, unit="image"):
        item = path.relative_to(root).with_suffix("")
        target = folder / item.with_suffix(".png")
        try:
            if target.resolve() == path.resolve() or target in written:
                raise Refusal(f"its output would overwrite {target.name}", where=path, cure="rename it or the folder")
            picture = read_picture(path)
            output = expert.run(picture.rgb_CHW[None], [item.as_posix()])
            alpha = picture.alpha_HW
            if alpha is not None:  # bicubic, as infer.py enlarges it
                alpha = resize_bicubic(alpha[None, None], scale=expert.identity.scale)
            write_picture(target, output.sr_BCHW, like=picture, alpha=alpha)
        except Refusal as refusal:
            log.error("%s", refusal)
            refused.append(str(refusal))
        else:
            written.append(target)
    return written, refused
