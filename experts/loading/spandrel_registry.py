"""Tensors whose keys are not one of our own networks' as they stand -> the network that spandrel recognises.

Ours are in its registry too: spandrel unwraps a checkpoint (`params_ema`, `state_dict`, `module.`) before it looks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelLoader,
    SizeRequirements,
    StateDict,
    UnsupportedModelError,
)
from torch import nn

from experts.loading.loaded import Recognised
from experts.native.architectures import OWN_ARCHITECTURES
from experts.spec import Padding
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from experts.loading.weights import StateFile
    from experts.native.recognise import OwnArchitecture


class OwnInSpandrel(Architecture[nn.Module]):
    """One of our networks, as spandrel asks for it."""

    def __init__(self, own: OwnArchitecture) -> None:
        super().__init__(id=own.name, detect=own.matches)
        self.own = own

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """An unwrapped state dict -> the loaded network."""
        built = self.own.build(state_dict)
        return ImageModelDescriptor(
            built.network,
            built.tensors,
            architecture=self,
            purpose="SR",
            tags=[],
            supports_half=False,
            supports_bfloat16=True,
            scale=built.scale,
            input_channels=built.input_channels,
            output_channels=built.output_channels,
            size_requirements=SizeRequirements(multiple_of=built.multiple),
        )


@lru_cache(maxsize=1)
def registry() -> ArchRegistry:
    """spandrel's architectures and ours; spandrel's own registry stays as it is."""
    ours = MAIN_REGISTRY.copy()
    for own in OWN_ARCHITECTURES:
        ours.add(ArchSupport.from_architecture(OwnInSpandrel(own)))
    return ours


def recognise_with_spandrel(state: StateFile) -> Recognised:
    """spandrel recognises the architecture by the keys and loads them strictly."""
    try:
        descriptor: Any = ModelLoader(registry=registry()).load_from_state_dict(dict(state.tensors))
    except UnsupportedModelError:
        raise Refusal(
            "no known architecture has these keys",
            where=state.path,
            cure="name the code that builds it as code:net.py:Net:FILE, or put its output images in as images:FOLDER",
        ) from None
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.purpose not in ("SR", "Restoration"):
        what = f"is a {descriptor.purpose} model of architecture {descriptor.architecture.id}"
        raise Refusal(what, where=state.path, cure="experts must be image super-resolution models")
    sizes = descriptor.size_requirements
    if sizes.square:
        raise Refusal("takes square images only", where=state.path, cure="use another network")
    return Recognised(
        descriptor.model,
        str(descriptor.architecture.id),
        scale=descriptor.scale,
        input_channels=descriptor.input_channels,
        output_channels=descriptor.output_channels,
        padding=Padding(multiple=max(1, sizes.multiple_of), minimum=max(1, sizes.minimum)),
        # Private, but spandrel's public way to the same function clamps the image.
        call=descriptor._call_fn,  # pyright: ignore[reportPrivateUsage]
    )
