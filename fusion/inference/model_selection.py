"""`--model` and `--experts` -> which experts to open, and the callable that fuses tiles of any subset of them.

A model is a preset (`default`, `strong`: a YAML file of that name among the weights), `none`, a folder with a
`default.yaml` of its own or with a fusion model, a fusion model's file, a single expert's weights file, or a name on
the Hub.
Axes: B batch, E experts, C channels, H and W of the LR tile.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field

from fusion.inference.ensemble import Answer, Fused
from fusion.network import FusionSR
from fusion.network.interface import SMALLEST
from fusion.network.save import FILE_NAME, FORMAT, fingerprint
from imaging.device import Precision, has_fast_bf16
from imaging.paths import find_pretrained, pretrained_folder, pretrained_folders
from imaging.refusal import Refusal, closest
from imaging.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fusion.inference.ensemble import Fuse

DEFAULT, NONE = "default", "none"
DEFAULT_FILE = "default.yaml"
PRESET_NAME = re.compile(r"[A-Za-z0-9_-]+")  # what can be no path and no id on the Hub


class ModelPreset(Settings):
    """`NAME.yaml` in a folder of weights: experts by name or by a file there, the fusion file or null, its budget.

    `fast_precision` is what `--precision auto` takes where the processor has instructions for it; measured before it
    is written there (docs/results/inference.md).
    """

    experts: tuple[str, ...] = Field(min_length=1)
    fusion: str | None = None
    budget: str = "budget.json"
    fast_precision: Precision = "fp32"


@dataclass(frozen=True)
class ModelSelection:
    """Experts to open, in order; the fusion model in eval mode or None; where it came from.

    Experts `of_preset` were not chosen by the user: those that are not fetched yet may be left out.
    """

    experts: tuple[str, ...]
    fusion: FusionSR | None
    source: str
    of_preset: bool = False
    fast_precision: Precision = "fp32"

    def precision_on(self, device: torch.device) -> Precision:
        """What `--precision auto` means for this model there."""
        return self.fast_precision if has_fast_bf16(device) else "fp32"


def select_model(model: str, experts: Sequence[str] | None) -> ModelSelection:
    """Read what `model` names; `experts` replaces its own, and a fusion model must know each of them."""
    wanted = tuple(experts) if experts else None
    if model == NONE:
        if wanted is None:
            raise Refusal("names no experts", where="--model none", cure="add --experts a,b")
        return ModelSelection(wanted, None, NONE)
    preset = find_preset(model)
    if preset is not None:
        return _of_preset(preset, wanted)
    path = Path(model)
    if path.is_dir() and not (path / FILE_NAME).is_file():
        if (path / DEFAULT_FILE).is_file():
            return _of_preset(path / DEFAULT_FILE, wanted)
        cure = f"put {FILE_NAME} or {DEFAULT_FILE} there, or name another model"
        raise Refusal("holds no model", where=path, cure=cure)
    if path.is_file() and not is_fusion_file(path):
        return ModelSelection(wanted or (str(path),), None, str(path))
    if not path.exists() and "/" not in model:  # an id on the Hub is owner/name: a typing error should not go there
        close = closest(model, preset_names())
        cure = f"name a file or folder, a Hub id as owner/name, or a known expert by --model {NONE} --experts {model}"
        cure = cure if close is None else f"did you mean --model {close}?"
        raise Refusal("there is no such model", where=f"--model {model}", cure=cure)
    fusion = FusionSR.from_pretrained(model)
    return ModelSelection(wanted or fusion.settings.names, fusion, model)


def find_preset(model: str) -> Path | None:
    """The file of a preset, in the first folder of weights that has it; `default` has one even where it is missing."""
    if not PRESET_NAME.fullmatch(model):
        return None
    found = find_pretrained(f"{model}.yaml")
    return pretrained_folder() / DEFAULT_FILE if found is None and model == DEFAULT else found


def preset_names() -> set[str]:
    """All presets there are: YAML files with experts among the weights."""
    files = [file for folder in pretrained_folders() for file in folder.glob("*.yaml")]
    return {file.stem for file in files if PRESET_NAME.fullmatch(file.stem)} | {DEFAULT}


def is_fusion_file(path: Path) -> bool:
    """By the file's own header, which begins with its length and then JSON."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        # At most 1 MiB: the length in a file of another kind may be any number.
        return FORMAT.encode() in stream.read(min(length, 1 << 20))


def _of_preset(file: Path, wanted: tuple[str, ...] | None) -> ModelSelection:
    settings, folder = load_settings(ModelPreset, file), file.parent
    named = tuple(str(folder / one) if (folder / one).is_file() else one for one in settings.experts)
    fusion = None if settings.fusion is None else FusionSR.from_pretrained(str(folder / settings.fusion))
    # Experts chosen by hand are not the preset's: without a model that knows them there is nothing to fuse them by.
    if fusion is not None and wanted is not None and not set(map(_name, wanted)) <= set(fusion.settings.names):
        raise Refusal(
            f"the model of {file} does not know all of {', '.join(wanted)}",
            where="--experts",
            cure=f"choose among {', '.join(fusion.settings.names)}, or add --model none for their plain mean",
        )
    return ModelSelection(
        wanted or named, fusion, str(file), of_preset=wanted is None, fast_precision=settings.fast_precision
    )


def _name(expert: str) -> str:
    """What an expert is called in a model: a file goes by its name without the ending, also behind its code."""
    file = expert.rpartition(":")[2] if expert.startswith("code:") else expert
    return Path(file).stem if Path(file).is_file() else expert


# LR pixels of surroundings that the fusion itself is given beyond those of the experts. Its large kernels and its
# spectrum see further, but faintly: docs/results/inference.md has the difference between tiled and whole.
FUSION_MARGIN = 16
FUSION_MULTIPLE = 8  # the side of its DCT blocks


def fuse_with(model: FusionSR, precision: Precision = "fp32") -> Fuse:
    """(tile, answers) -> Fused: in float32, or in bf16 where that is the experts' precision. fp16 was never tried."""
    scale = model.settings.scale
    autocast = partial(torch.autocast, dtype=torch.bfloat16, enabled=precision == "bf16")

    def fuse(lr_BCHW: Tensor, answers: Mapping[str, Answer]) -> Fused:
        height, width = lr_BCHW.shape[-2:]
        down, right = max(0, SMALLEST - height), max(0, SMALLEST - width)
        names = tuple(answers)
        images = [_longer(answer.sr_BCHW, scale * down, scale * right) for answer in answers.values()]
        sr_BECHW = torch.stack(images, 1)
        feats = {
            name: _longer(answer.feat_BCHW, down, right)
            for name, answer in answers.items()
            if answer.feat_BCHW is not None and model.settings.channels_of(name)
        }
        with autocast(lr_BCHW.device.type):
            output = model(_longer(lr_BCHW, down, right), sr_BECHW, feats, names)
        real = (..., slice(0, scale * height), slice(0, scale * width))
        difficulty = None if output.difficulty_B1HW is None else output.difficulty_B1HW[real]
        contributions = {phase: part_BCHW[real] for phase, part_BCHW in output.contributions.items()}
        return Fused(output.image_BCHW[real], output.gates_BEHW[real], difficulty, contributions)

    return fuse


def model_sha256(model: FusionSR) -> str:
    """Of all that decides what the model does: weights, base, settings."""
    tensors = {name: value.cpu() for name, value in model.state_dict().items()}
    return hashlib.sha256(f"{fingerprint(tensors)} {model.settings.model_dump_json()}".encode()).hexdigest()


def _longer(x_BCHW: Tensor, down: int, right: int) -> Tensor:
    """Images below the network's least size go on with their last pixel."""
    return F.pad(x_BCHW, (0, right, 0, down), mode="replicate") if down or right else x_BCHW
