"""Images, experts and a fusion model -> better images, four times as large. The rooms meet here."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from dataclasses import replace
from functools import lru_cache, partial
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experts.catalog import load_catalog
from experts.open import fetched_experts, open_experts
from experts.run import NetworkExpert
from experts.spec import scale_of
from experts.stored import StoredExperts
from experts.words import split_words
from fusion.budget.run import find_budget_model
from fusion.inference.cluster.carry_out import carry_out_on_ray
from fusion.inference.command import Request, carry_out
from fusion.inference.ensemble import Answer, Ensemble, Place, plain_mean
from fusion.inference.model_selection import (
    DEFAULT,
    FUSION_MARGIN,
    FUSION_MULTIPLE,
    ModelSelection,
    fuse_with,
    model_sha256,
    select_model,
)
from fusion.inference.options import Options
from fusion.inference.parser import add_arguments, precision_of, request_of
from fusion.refinement.open import open_refiner
from imaging.cluster.options import cluster_options_of
from imaging.command import CommandParser, goes_on_by, run
from imaging.device import SideBySide, best_device, find_device
from imaging.dihedral import transform
from imaging.refusal import Refusal
from imaging.scale import enlarged

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from torch import Tensor

    from experts.spec import Expert
    from fusion.inference.ensemble import RunExpert
    from fusion.refinement.open import AnyRefiner
    from imaging.device import Precision

log = logging.getLogger(__name__)
FOLDER_MARGIN = 0  # images from folders need no surroundings


def main(
    model_dir: str | Path | None,
    input_path: str | Path,
    output_path: str | Path,
    device: str | torch.device | None = None,
) -> int:
    """The entry point that the NTIRE toolkit's test.py calls; None for the model means the default."""
    ensemble = build(str(model_dir or DEFAULT), None, device=str(device or best_device()))
    request = Request(Path(input_path), Path(output_path), Options(ext="png", strip_metadata=True))
    return carry_out(request, ensemble)


@goes_on_by("--skip-existing")
def command_line(arguments: Sequence[str]) -> int:
    """Parse, build, call."""
    parser = CommandParser(prog="infer.py", description="upscale images four times by fused experts")
    add_arguments(parser)
    words = parser.parse_args(arguments)
    request = request_of(words)
    if request.budget_model is None and not (request.options.budget is None and request.options.max_loss is None):
        request = replace(request, budget_model=find_budget_model(words.model))
    cluster = cluster_options_of(words)
    if cluster is not None:
        return carry_out_on_ray(request, partial(open_all, words), cluster)
    return carry_out(request, *open_all(words))


def open_all(words: argparse.Namespace) -> tuple[Ensemble, AnyRefiner | None]:
    """The experts, the fusion model and the refiner of a command line, on this machine's device."""
    device = words.device or best_device()
    refiner = None
    if words.refine is not None:  # before the experts: it is what is most likely to be incomplete
        refiner = open_refiner(words.refine, words.refine_model, words.refine_lora, find_device(device))
    ensemble = build(
        words.model,
        split_words(words.experts) if words.experts else None,
        device=device,
        precision=precision_of(words),
        config=words.config,
        compiled=words.compile,
        trust_code=words.trust_code,
    )
    return ensemble, refiner


def build(
    model: str,
    wanted: Sequence[str] | None,
    *,
    device: str,
    precision: Precision | None = "fp32",
    config: Path | None = None,
    compiled: bool = False,
    trust_code: bool = False,
) -> Ensemble:
    """Open the experts, load the fusion model, check that they belong together; no precision: as suits the device."""
    selection, where = select_model(model, wanted), find_device(device)
    precision = precision or selection.precision_on(where)
    sources, experts = open_selected(selection, where, precision=precision, config=config, trust_code=trust_code)
    return assemble(selection, sources, experts, where, precision=precision, compiled=compiled)


def open_selected(
    selection: ModelSelection,
    where: torch.device,
    *,
    precision: Precision = "fp32",
    config: Path | None = None,
    trust_code: bool = False,
) -> tuple[Sequence[str], list[Expert]]:
    """The experts of a model that are here, and by what words."""
    fusion = selection.fusion
    # Without a fusion model nobody reads features: a known tap is kept, since it is part of the images' manifest.
    features = "find" if fusion is not None else "known"
    sources = fetched_experts(selection.experts, load_catalog(config)) if selection.of_preset else selection.experts
    experts = open_experts(
        sources,
        device=where,
        precision=precision,
        config=config,
        features=features,
        trust_code=trust_code,
        stored=_stored(selection),
    )
    return sources, experts


def assemble(
    selection: ModelSelection,
    sources: Sequence[str],
    experts: list[Expert],
    where: torch.device,
    *,
    precision: Precision = "fp32",
    compiled: bool = False,
) -> Ensemble:
    """Opened experts and their fusion, as inference runs them."""
    fusion, scale = selection.fusion, scale_of(experts)
    if fusion is not None:
        if fusion.settings.scale != scale:
            what = f"fuses experts that enlarge {fusion.settings.scale} times, these enlarge {scale} times"
            raise Refusal(what, where=selection.source, cure="choose its own experts, or another model")
        fusion.settings.check_weights({one.name: one.identity.weights_sha256 for one in experts})
        fusion.to(where)
    elif len(experts) > 1:
        log.warning("no fusion model: the plain mean of %s", ", ".join(one.name for one in experts))
    networks = [one for one in experts if isinstance(one, NetworkExpert)]
    if compiled:
        for one in networks:
            compile_network(one)
    # Tiles begin at common multiples of all windows, so that attention windows and DCT blocks fall as in the whole.
    multiples = [one.padding.multiple for one in networks]
    return Ensemble(
        experts={one.name: expert_function(one) for one in experts},
        fuse=plain_mean if fusion is None else fuse_with(fusion, precision),
        margin=max([one.spec.overlap for one in networks] + [FOLDER_MARGIN]) + (FUSION_MARGIN if fusion else 0),
        multiple=lcm(*multiples, FUSION_MULTIPLE if fusion else 1),
        identity={
            "experts": {one.name: _identity(one) for one in experts},
            "fusion": _fusion(selection, len(experts), precision),
            **({"compiled": True} if compiled else {}),  # sums in another order: equal only up to rounding
        },
        device=where,
        scale=scale,
        sources=tuple(sources),
        together=SideBySide(len(networks) if where.type == "cpu" and not compiled else 1),
        can_probe=len(networks) == len(experts),
        has_difficulty=fusion is not None and fusion.gating is not None and fusion.record.verdict != "base",
    )


def _stored(selection: ModelSelection) -> StoredExperts | None:
    """What the fusion model's header says of its experts."""
    if selection.fusion is None:
        return None
    hashes = {slot.name: slot.sha256 for slot in selection.fusion.settings.experts}
    place = Path(selection.source)
    beside = [place if place.is_dir() else place.parent] if place.exists() else []
    specs = selection.fusion.record.expert_specs
    return StoredExperts.read(hashes, specs, selection.source, *beside, option="--experts")


def expert_function(expert: Expert) -> RunExpert:
    """An expert -> the function that inference calls: networks run, folders of images are read and cropped."""
    if not expert.identity.is_image_folder:

        def run_network(lr_BCHW: Tensor, place: Place, _turn: int) -> Answer:
            output = expert.run(lr_BCHW, [place.item])
            return Answer(output.sr_BCHW, output.feat_BCHW)

        return run_network

    scale = expert.identity.scale

    @lru_cache(maxsize=1)  # all tiles of an image come before the next image
    def read_image(item: str, height: int, width: int) -> Answer:
        output = expert.run(torch.zeros(1, 3, height, width), [item])
        return Answer(output.sr_BCHW, output.feat_BCHW)

    def crop(lr_BCHW: Tensor, place: Place, turn: int) -> Answer:
        # The tile comes turned, its place does not: cut the unturned part and turn it.
        height, width = transform(lr_BCHW, 1).shape[-2:] if turn % 2 else lr_BCHW.shape[-2:]
        sr_BCHW, feat_BCHW = read_image(place.item, place.height, place.width)
        rows, columns = slice(place.top, place.top + height), slice(place.left, place.left + width)
        feat = None if feat_BCHW is None else transform(feat_BCHW[..., rows, columns], turn)
        return Answer(transform(sr_BCHW[..., enlarged(rows, scale), enlarged(columns, scale)], turn), feat)

    return crop


def compile_network(expert: NetworkExpert) -> None:
    """torch.compile the network's parts one by one, but not the one whose features a hook reads."""
    if expert.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise Refusal("needs a C++ compiler on the CPU", where="--compile", cure="install g++, or leave it out")
    tapped = expert.tap.module.split(".")[0] if expert.tap else None
    for name, part in expert.network.named_children():
        if name != tapped:
            for layer in part if isinstance(part, torch.nn.ModuleList) else (part,):
                layer.compile(dynamic=True)


def _identity(expert: Expert) -> dict[str, Any]:
    identity = expert.identity.document()
    del identity["name"], identity["tiling"]  # the key holds the one, the options of the run the other
    return identity


def _fusion(selection: ModelSelection, experts: int, precision: Precision) -> dict[str, Any]:
    """Which model fused: by content, so that a moved file is the same model."""
    if selection.fusion is None:
        return {"kind": "one expert" if experts == 1 else "plain mean"}
    found = {"kind": "fusion", "verdict": selection.fusion.record.verdict, "sha256": model_sha256(selection.fusion)}
    return found | ({"precision": "bf16"} if precision == "bf16" else {})  # else float32, as in older records


if __name__ == "__main__":
    sys.exit(run(command_line))
