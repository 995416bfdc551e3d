"""A file's tensors -> which native network they are and how it was built: the three presets for spandrel.

What leaves no trace in the tensors (drop_path, top_k, skip_flat, the noise's amplitude, blur or Laplacian) comes from
the file's header, see `experts/loading/weights.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from spandrel import Architecture, ImageModelDescriptor, SizeRequirements, StateDict
from spandrel.util import KeyCondition, get_seq_len

from experts.native.freqnet import FreqNet
from experts.native.msg import MSG
from experts.native.ssm import SSM

if TYPE_CHECKING:
    from experts.native.base import NativeNetwork


class NativeArch(Architecture["NativeNetwork"]):
    """A preset: the keys that identify it, and how its settings follow from the tensors."""

    kind: type[NativeNetwork]

    def __init__(self, kind: type[NativeNetwork], *keys: str) -> None:
        super().__init__(id=kind.__name__, detect=KeyCondition.has_all("conv_after_body.weight", *keys))
        self.kind = kind

    def detect_settings(self, state: StateDict) -> dict[str, Any]:
        """The settings that its tensors determine, beyond those of all presets."""
        raise NotImplementedError

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[NativeNetwork]:
        """A state dict -> the loaded network."""
        settings = {**_shared(state_dict), **self.detect_settings(state_dict)}
        network = self.kind(**settings)
        return ImageModelDescriptor(
            network,
            state_dict,
            architecture=self,
            purpose="SR",
            tags=[f"{settings['upsampler']}", "deployed" if settings["deployed"] else "training form"],
            supports_half=False,
            supports_bfloat16=True,
            scale=network.scale,
            input_channels=3,
            output_channels=3,
            size_requirements=SizeRequirements(multiple_of=network.padding.multiple),
        )


class MSGArch(NativeArch):
    """The first draft."""

    def __init__(self) -> None:
        super().__init__(MSG, "pyramid.lift_low.weight", "detail.mixture.experts.0.widen.weight")

    def detect_settings(self, state: StateDict) -> dict[str, Any]:
        """Pyramid, mixer, experts, head."""
        widths = _pyramid_widths(state)
        levels = len(widths)
        mixer = f"pyramid.levels.{levels - 1}.low.0.mixer."
        long_range = "linear" if f"{mixer}qkv.weight" in state else "ssm" if f"{mixer}log_rate" in state else "window"
        return {
            "widths": widths,
            "depths": tuple(get_seq_len(state, f"pyramid.levels.{i}.low") for i in range(levels)),
            "up_depths": _up_depths(state),
            "split": _splitter(state) if "pyramid.lift_high.weight" in state else "none",
            "long_range": long_range,
            **_mixture(state, "detail"),
            "texture": "large" if "texture.norm1.weight" in state else "plain",
            **_kernel(state, "texture.large"),
        }


class FreqNetArch(NativeArch):
    """The second draft."""

    def __init__(self) -> None:
        super().__init__(FreqNet, "pyramid.lift_low.weight", "pyramid.bottleneck.mixtures.0.norm.weight")

    def detect_settings(self, state: StateDict) -> dict[str, Any]:
        """Pyramid, paths, bottleneck."""
        widths = _pyramid_widths(state)
        high = "pyramid.lift_high.weight" in state
        return {
            "widths": widths,
            # Less the gated convolution that each level begins with.
            "depths": tuple(get_seq_len(state, f"pyramid.levels.{i}.low") - 1 for i in range(len(widths) - 1)),
            "bottleneck": get_seq_len(state, "pyramid.bottleneck.mixtures"),
            "up_depths": _up_depths(state),
            "high": high,
            **({"splitter": _splitter(state)} if high else {}),
            "attention": "pyramid.bottleneck.blocks.0.attention.position_bias" in state,
            **_mixture(state, "pyramid.bottleneck.mixtures.0"),
            **_kernel(state, "texture.large"),
        }


class SSMArch(NativeArch):
    """The third draft."""

    def __init__(self) -> None:
        super().__init__(SSM, "trunk.0.window.attention.position_bias", "up_trunk.gate.weight")

    def detect_settings(self, state: StateDict) -> dict[str, Any]:
        """Widths, trunk, branches."""
        settings: dict[str, Any] = {
            "widths": (state["stem.0.weight"].shape[0], state["down.weight"].shape[0]),
            "stages": get_seq_len(state, "trunk"),
            "mixer": "ssm" if "trunk.0.mixer.log_rate" in state else "window",
            "fourier": "split.radius" in state,
            "moe": "off",
            "noise": 0.02 if "texture.noise.strength" in state else 0.0,
            **_kernel(state, "texture.refine.large"),
        }
        if settings["mixer"] == "ssm":
            # `select` gives each head its step and two vectors of states, b and c.
            heads = state["trunk.0.mixer.log_rate"].shape[0]
            settings["states"] = (state["trunk.0.mixer.select.weight"].shape[0] // heads - 1) // 2
        if "trunk.0.experts.norm.weight" in state:
            settings["moe"] = "sparse" if "trunk.0.experts.router.weight" in state else "single"
        return settings


def native_architectures() -> tuple[NativeArch, ...]:
    """All presets, for the registry."""
    return MSGArch(), FreqNetArch(), SSMArch()


def _shared(state: StateDict) -> dict[str, Any]:
    """Upsampler and scale, window, and whether the multi-branch convolutions are folded."""
    settings: dict[str, Any] = {"deployed": any(".folded." in key for key in state)}
    if "upsampler.offset.weight" in state:
        # DySample: two offsets for each of four groups; the others: three colours for each sub-pixel.
        settings["upsampler"], sub_pixels = "dysample", state["upsampler.offset.weight"].shape[0] // 8
    else:
        settings["upsampler"] = "moe" if "upsampler.router.weight" in state else "pixelshuffle"
        sub_pixels = state["upsampler.to_image.weight"].shape[0] // 3
    settings["scale"] = math.isqrt(sub_pixels)
    # A bias table has one row per offset between two positions of a window: (2 window - 1) squared.
    table = next((value for key, value in state.items() if key.endswith(".position_bias")), None)
    if table is not None:
        settings["window_size"] = (math.isqrt(table.shape[0]) + 1) // 2
    return settings


def _pyramid_widths(state: StateDict) -> tuple[int, ...]:
    downs = get_seq_len(state, "pyramid.down_low")
    return (
        state["pyramid.lift_low.weight"].shape[0],
        *(state[f"pyramid.down_low.{i}.weight"].shape[0] for i in range(downs)),
    )


def _up_depths(state: StateDict) -> tuple[int, ...]:
    return tuple(get_seq_len(state, f"pyramid.ups.{i}.blocks") for i in range(get_seq_len(state, "pyramid.ups")))


def _splitter(state: StateDict) -> str:
    """A disc has a radius; blur and Laplacian have no tensors: blur, unless the header names the other."""
    return "fft" if "pyramid.splitter.radius" in state else "blur"


def _mixture(state: StateDict, prefix: str) -> dict[str, Any]:
    """Routed or not, and among how many."""
    if f"{prefix}.router.weight" not in state:
        return {"moe": "single"}
    return {"moe": "sparse", "experts": state[f"{prefix}.router.weight"].shape[0]}


def _kernel(state: StateDict, prefix: str) -> dict[str, Any]:
    """The side of the large kernel in either form, if there is one."""
    for form in ("branches.0", "folded"):
        key = f"{prefix}.conv.{form}.weight"
        if key in state:
            return {"kernel": state[key].shape[-1]}
    return {}
