"""All networks implemented here, and how the three presets' settings follow from a file's tensors.

What leaves no trace in the tensors (drop_path, top_k, skip_flat, the noise's amplitude, blur or Laplacian) comes from
the file's header, see `experts/loading/weights.py`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from experts.native.edsr import EDSR_FILES
from experts.native.freqnet import FreqNet
from experts.native.hit import HIT_FILES
from experts.native.msg import MSG
from experts.native.recognise import Built, OwnArchitecture, sequence_length
from experts.native.ssm import SSM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from experts.native.base import NativeNetwork
    from experts.native.recognise import Tensors


def find_own(tensors: Mapping[str, object]) -> OwnArchitecture | None:
    """The one whose keys these are, if one's are."""
    return next((one for one in OWN_ARCHITECTURES if one.matches(tensors)), None)


def _preset(kind: type[NativeNetwork], read: Callable[[Tensors], dict[str, Any]], *keys: str) -> OwnArchitecture:
    """A preset: the keys that identify it, and how its settings follow from the tensors, beyond those of all."""
    layout = frozenset(("conv_after_body.weight", *keys))
    return OwnArchitecture(kind.__name__, (layout,), partial(_build, kind, read))


def _build(kind: type[NativeNetwork], read: Callable[[Tensors], dict[str, Any]], tensors: Tensors) -> Built:
    network = kind(**{**_shared(tensors), **read(tensors)})
    return Built(network, tensors, network.scale, multiple=network.padding.multiple)


def read_msg(tensors: Tensors) -> dict[str, Any]:
    """Pyramid, mixer, experts, head."""
    widths = _pyramid_widths(tensors)
    levels = len(widths)
    mixer = f"pyramid.levels.{levels - 1}.low.0.mixer."
    long_range = "linear" if f"{mixer}qkv.weight" in tensors else "ssm" if f"{mixer}log_rate" in tensors else "window"
    return {
        "widths": widths,
        "depths": tuple(sequence_length(tensors, f"pyramid.levels.{i}.low") for i in range(levels)),
        "up_depths": _up_depths(tensors),
        "split": _splitter(tensors) if "pyramid.lift_high.weight" in tensors else "none",
        "long_range": long_range,
        **_mixture(tensors, "detail"),
        "texture": "large" if "texture.norm1.weight" in tensors else "plain",
        **_kernel(tensors, "texture.large"),
    }


def read_freqnet(tensors: Tensors) -> dict[str, Any]:
    """Pyramid, paths, bottleneck."""
    widths = _pyramid_widths(tensors)
    high = "pyramid.lift_high.weight" in tensors
    return {
        "widths": widths,
        # Less the gated convolution that each level begins with.
        "depths": tuple(sequence_length(tensors, f"pyramid.levels.{i}.low") - 1 for i in range(len(widths) - 1)),
        "bottleneck": sequence_length(tensors, "pyramid.bottleneck.mixtures"),
        "up_depths": _up_depths(tensors),
        "high": high,
        **({"splitter": _splitter(tensors)} if high else {}),
        "attention": "pyramid.bottleneck.blocks.0.attention.position_bias" in tensors,
        **_mixture(tensors, "pyramid.bottleneck.mixtures.0"),
        **_kernel(tensors, "texture.large"),
    }


def read_ssm(tensors: Tensors) -> dict[str, Any]:
    """Widths, trunk, branches."""
    settings: dict[str, Any] = {
        "widths": (tensors["stem.0.weight"].shape[0], tensors["down.weight"].shape[0]),
        "stages": sequence_length(tensors, "trunk"),
        "mixer": "ssm" if "trunk.0.mixer.log_rate" in tensors else "window",
        "fourier": "split.radius" in tensors,
        "moe": "off",
        "noise": 0.02 if "texture.noise.strength" in tensors else 0.0,
        **_kernel(tensors, "texture.refine.large"),
    }
    if settings["mixer"] == "ssm":
        # `select` gives each head its step and two vectors of states, b and c.
        heads = tensors["trunk.0.mixer.log_rate"].shape[0]
        settings["states"] = (tensors["trunk.0.mixer.select.weight"].shape[0] // heads - 1) // 2
    if "trunk.0.experts.norm.weight" in tensors:
        settings["moe"] = "sparse" if "trunk.0.experts.router.weight" in tensors else "single"
    return settings


def _shared(tensors: Tensors) -> dict[str, Any]:
    """Upsampler and scale, window, and whether the multi-branch convolutions are folded."""
    settings: dict[str, Any] = {"deployed": any(".folded." in key for key in tensors)}
    if "upsampler.offset.weight" in tensors:
        # DySample: two offsets for each of four groups; the others: three colours for each sub-pixel.
        settings["upsampler"], sub_pixels = "dysample", tensors["upsampler.offset.weight"].shape[0] // 8
    else:
        settings["upsampler"] = "moe" if "upsampler.router.weight" in tensors else "pixelshuffle"
        sub_pixels = tensors["upsampler.to_image.weight"].shape[0] // 3
    settings["scale"] = math.isqrt(sub_pixels)
    # A bias table has one row per offset between two positions of a window: (2 window - 1) squared.
    table = next((value for key, value in tensors.items() if key.endswith(".position_bias")), None)
    if table is not None:
        settings["window_size"] = (math.isqrt(table.shape[0]) + 1) // 2
    return settings


def _pyramid_widths(tensors: Tensors) -> tuple[int, ...]:
    downs = sequence_length(tensors, "pyramid.down_low")
    return (
        tensors["pyramid.lift_low.weight"].shape[0],
        *(tensors[f"pyramid.down_low.{i}.weight"].shape[0] for i in range(downs)),
    )


def _up_depths(tensors: Tensors) -> tuple[int, ...]:
    return tuple(
        sequence_length(tensors, f"pyramid.ups.{i}.blocks") for i in range(sequence_length(tensors, "pyramid.ups"))
    )


def _splitter(tensors: Tensors) -> str:
    """A disc has a radius; blur and Laplacian have no tensors: blur, unless the header names the other."""
    return "fft" if "pyramid.splitter.radius" in tensors else "blur"


def _mixture(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """Routed or not, and among how many."""
    if f"{prefix}.router.weight" not in tensors:
        return {"moe": "single"}
    return {"moe": "sparse", "experts": tensors[f"{prefix}.router.weight"].shape[0]}


def _kernel(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """The side of the large kernel in either form, if there is one."""
    for form in ("branches.0", "folded"):
        key = f"{prefix}.conv.{form}.weight"
        if key in tensors:
            return {"kernel": tensors[key].shape[-1]}
    return {}


OWN_ARCHITECTURES = (
    EDSR_FILES,
    HIT_FILES,
    _preset(MSG, read_msg, "pyramid.lift_low.weight", "detail.mixture.experts.0.widen.weight"),
    _preset(FreqNet, read_freqnet, "pyramid.lift_low.weight", "pyramid.bottleneck.mixtures.0.norm.weight"),
    _preset(SSM, read_ssm, "trunk.0.window.attention.position_bias", "up_trunk.gate.weight"),
)
