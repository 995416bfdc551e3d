"""Names, weights files and image folders -> experts ready to run.

`hat-l` is a name from the catalog, `models/x.safetensors` any file that spandrel can load, `models/x.onnx` a network
for onnxruntime, `code:net.py:Net:x.pth` a file with the code that builds its network, and `images:FOLDER` a folder with
the outputs of a closed model.
"""

from __future__ import annotations

import logging
import math
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from experts.call import without_meshgrid_warning
from experts.catalog import Catalog, built_in_catalog, load_catalog
from experts.folded_tail import fold_upsampler
from experts.image_folder import ImageFolderExpert
from experts.loading.find_file import note_place
from experts.loading.find_tap import find_tap
from experts.loading.load import load_network
from experts.loading.onnx_network import OnnxNetwork, load_onnx_network, onnx_tap
from experts.loading.weights import (
    ONNX_SUFFIX,
    SUFFIXES,
    find_weights,
    read_state_file,
    recorded_sha256,
    require_weights,
    verify,
)
from experts.pad import padded_length
from experts.run import NetworkExpert
from experts.spec import Expert, ExpertSpec, Padding, Tap, WeightsSource, scale_of
from experts.tap import as_maps, caught_outputs, find_layer
from experts.words import CODE_PREFIX, parse_code_word
from imaging.device import Precision, find_device, warn_of_slow_bf16
from imaging.paths import find_pretrained, pretrained_folder
from imaging.refusal import Refusal
from imaging.tiling import effective_kept_tile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experts.loading.loaded import LoadedNetwork
    from experts.stored import StoredExperts

log = logging.getLogger(__name__)

IMAGES_PREFIX = "images:"

# "find": a tap that nobody has written down is looked for; "known": it is not; "none": not even a known one is used.
Features = Literal["find", "known", "none"]


def open_experts(
    wanted: Sequence[str],
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    tile: int = 0,
    config: Path | None = None,
    features: Features = "find",
    trust_code: bool = False,
    stored: StoredExperts | None = None,
) -> list[Expert]:
    """Open each of `wanted`; two of the same name are refused, since caches and gates tell them apart by it.

    `stored` are the experts of a cache or a model, found by what it says of them unless `config` names them itself.
    """
    catalog = load_catalog(config)
    own = set(catalog.names) - set(built_in_catalog().names)
    where = find_device(str(device))
    warn_of_slow_bf16(where, precision, "--precision bf16")
    open_one = partial(open_expert, catalog=catalog, device=where, precision=precision, tile=tile, features=features)
    opened = list[Expert]()
    for one in wanted:
        known = None if stored is None or one in own else stored.find(one, catalog, trust_code=trust_code)
        opened.append(open_one(known or one, trust_code=trust_code))
    scale = scale_of([one for one in opened if not isinstance(one, ImageFolderExpert)])
    opened = [one.at_scale(scale) if isinstance(one, ImageFolderExpert) else one for one in opened]
    names = [expert.name for expert in opened]
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"the name '{name}' stands for two experts", where="experts", cure="rename one of them")
    return opened


def fetched_experts(wanted: Sequence[str], catalog: Catalog) -> tuple[str, ...]:
    """`wanted` without those that can be fetched and have not been, said in a line; refused if that leaves none."""
    missing = [name for name in wanted if _can_be_fetched(name, catalog)]
    if not missing:
        return tuple(wanted)
    what, cure = f"the weights of {', '.join(missing)} are missing", f"`python -m experts fetch {' '.join(missing)}`"
    present = tuple(one for one in wanted if one not in missing)
    if not present:
        raise Refusal(what, where=pretrained_folder(), cure=f"run {cure}")
    log.warning("%s: going on with %s alone; %s gets the others", what, ", ".join(present), cure)
    return present


def _can_be_fetched(name: str, catalog: Catalog) -> bool:
    """Its weights or their code are missing, and the catalog has their address."""
    spec = catalog.find(name)
    if spec is None:
        return False
    code = spec.code
    if code is not None and code.url and not Path(code.file).is_file() and find_pretrained(code.file) is None:
        return True
    return find_weights(spec) is None and any(one.url for one in spec.weights)


def open_expert(
    wanted: str | ExpertSpec,
    catalog: Catalog,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    tile: int = 0,
    features: Features = "find",
    trust_code: bool = False,
) -> Expert:
    """One name, file, `code:...`, `images:FOLDER` or spec -> one expert."""
    if isinstance(wanted, str) and wanted.startswith(IMAGES_PREFIX):
        return ImageFolderExpert(Path(wanted.removeprefix(IMAGES_PREFIX)), device=device)
    spec = spec_of(wanted, catalog) if isinstance(wanted, str) else wanted
    path, source = require_weights(spec)
    sha256 = verify(path, source)
    vouched = source.sha256 is not None or recorded_sha256(path) is not None
    spec = with_found_file(spec, source, path)
    if path.suffix.lower() == ONNX_SUFFIX:
        loaded = load_onnx_network(path, spec, features=features != "none")
        spec = spec.model_copy(update={"precision": ("fp32",)})  # the file's own: no autocast reaches into it
    else:
        state = read_state_file(path, sha256=sha256, vouched=vouched)
        loaded = load_network(state, spec, trust_code=trust_code)
    with without_meshgrid_warning():
        padding = find_padding(spec, loaded, catalog)
        tap = tap_of(spec, loaded, padding, catalog, features)
    if device.type == "cpu":
        fold_upsampler(loaded.network)
    note_place(path, sha256)
    effective = effective_kept_tile(tile, spec.overlap, padding.multiple)
    if tile and effective != tile:
        needs = f"{spec.overlap} pixels of surroundings on each side and tiles in steps of {padding.multiple}"
        log.warning("%s: tiles of %d LR pixels instead of %d: it needs %s", spec.name, effective, tile, needs)
    if spec.code is not None and loaded.code is not None:
        note_place(Path(spec.code.file), loaded.code.partition(" ")[0])
    return NetworkExpert(
        spec,
        loaded.network,
        architecture=loaded.architecture,
        tap=tap,
        padding=padding,
        weights_sha256=sha256,
        device=device,
        precision=precision,
        tile=tile,
        call=loaded.call,
        code=loaded.code,
        scale=loaded.scale,
    )


def with_found_file(spec: ExpertSpec, source: WeightsSource, path: Path) -> ExpertSpec:
    """The spec with the one weights file that is there, as it is there."""
    found = source.model_copy(update={"file": str(path), "bytes": path.stat().st_size})
    return spec.model_copy(update={"weights": (found,)})


def spec_of(wanted: str, catalog: Catalog) -> ExpertSpec:
    """A catalog name -> its spec; a weights file, or one with its code -> a spec with nothing else."""
    if wanted.startswith(CODE_PREFIX):
        code, file = parse_code_word(wanted)
        return ExpertSpec(name=_name_of(Path(file)), code=code, weights=(WeightsSource(file=file),))
    known = catalog.find(wanted)
    if known is not None:
        return with_found_code(known)
    path = Path(wanted)
    if path.suffix.lower() not in (*SUFFIXES, ONNX_SUFFIX):
        if path.is_file():
            cure = f"use one of {', '.join((*SUFFIXES, ONNX_SUFFIX))}; of a TorchScript program save its state_dict"
            raise Refusal(f"'{path.suffix}' is not a weights format", where=path, cure=cure)
        return catalog.get(wanted)
    if not path.is_file():
        raise Refusal("no such weights file", where=path, cure="check the path, or see `python -m experts list`")
    of_catalog = [spec for spec in catalog.experts if path.name in {Path(s.file).name for s in spec.weights}]
    if of_catalog:
        published = next(s for s in of_catalog[0].weights if Path(s.file).name == path.name)
        known = of_catalog[0].model_copy(update={"weights": (published.model_copy(update={"file": wanted}),)})
        return with_found_code(known, path.parent)
    return ExpertSpec(name=_name_of(path), weights=(WeightsSource(file=wanted),))


def with_found_code(spec: ExpertSpec, beside: Path = Path()) -> ExpertSpec:
    """Published code lies where published weights do; code beside a user's own YAML has its full path already."""
    if (code := spec.code) is None:
        return spec
    path = next((one for one in (Path(code.file), beside / code.file) if one.is_file()), find_pretrained(code.file))
    return spec if path is None else spec.model_copy(update={"code": code.model_copy(update={"file": str(path)})})


def _name_of(weights: Path) -> str:
    """`my net.pth` -> `my-net`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", weights.stem).strip("-._") or "expert"


def tap_of(
    spec: ExpertSpec, loaded: LoadedNetwork, padding: Padding, catalog: Catalog, features: Features
) -> Tap | None:
    """The spec's own tap, or what is known of the architecture, or what running the network shows."""
    if not spec.features or features == "none":
        return None
    if isinstance(loaded.network, OnnxNetwork):
        named = onnx_tap(loaded.network, spec)
        return None if named is None else _with_channels(named, loaded, padding)
    known = catalog.taps.get(loaded.architecture)
    if spec.tap is not None or known is not None:
        return _with_channels(spec.tap or Tap(module=str(known)), loaded, padding)
    if features == "known":
        return None
    found = find_tap(loaded.network, padding, loaded.call)
    if found is None:
        log.warning(
            "%s: no layer of %s gives features on the image's grid: works without", spec.name, loaded.architecture
        )
    return found


def find_padding(spec: ExpertSpec, loaded: LoadedNetwork, catalog: Catalog) -> Padding:
    """The spec's own rule, or what spandrel and the catalog know of the architecture, both kept."""
    if spec.padding is not None:
        return spec.padding
    known = catalog.paddings.get(loaded.architecture)
    if known is None:
        return loaded.padding
    return Padding(
        multiple=math.lcm(known.multiple, loaded.padding.multiple),
        minimum=max(known.minimum, loaded.padding.minimum),
        mode=known.mode,
    )


def _with_channels(tap: Tap, loaded: LoadedNetwork, padding: Padding) -> Tap:
    """A tap without a stated channel count -> the count, seen in one small forward."""
    layer = find_layer(loaded.network, tap.module)
    if tap.channels is not None:
        return tap
    stated = getattr(layer, "out_channels", None)
    if isinstance(stated, int):
        return tap.model_copy(update={"channels": stated})
    size = padded_length(16, padding)
    lr_BCHW = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        output = caught_outputs(loaded.network, [tap.module], lr_BCHW, loaded.call)[tap.module]
    return tap.model_copy(update={"channels": as_maps(output, tap.layout, lr_BCHW).shape[1]})
