"""Folders of images that closed or foreign models produced -> a cache with one expert per folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cache_tools.write.extract import Report, extract
from experts.image_folder import ImageFolderExpert
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache_tools.write.recipe import ExtractSettings


def import_images(settings: ExtractSettings, folders: Sequence[str], scale: int = SCALE) -> Report:
    """`folders`: `NAME=FOLDER` or `FOLDER`, whose name is then the expert's; images are `scale` times their LR."""
    experts = [_open(argument, scale) for argument in folders]
    names = [expert.name for expert in experts]
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"two folders are called '{name}'", where="import-images", cure="write NAME=FOLDER")
    return extract(settings, experts)


def _open(argument: str, scale: int) -> ImageFolderExpert:
    name, equals, folder = argument.rpartition("=")
    return ImageFolderExpert(Path(folder), name=name if equals else None, scale=scale)
