"""A weights file and what is known of it -> a frozen network on a device, strictly loaded, or a refusal."""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from experts.call import without_meshgrid_warning
from experts.loading.code import load_code_network
from experts.loading.loaded import LoadedNetwork, Recognised, key_trouble
from experts.loading.weights import ARCHITECTURE_KEY, StateFile, header_hyperparameters
from experts.native.architectures import find_own
from experts.spec import Padding
from imaging.refusal import Refusal
from imaging.scale import SCALES

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from experts.native.recognise import OwnArchitecture
    from experts.spec import ExpertSpec

log = logging.getLogger(__name__)


# Their forwards draw noise anew: nothing of theirs could be cached or verified.
RANDOM_ARCHITECTURES = ("AuraSR",)


# Settings that decide the image and leave no trace in the tensors: a header or the catalog tells them, or nothing.
UNTOLD = {"GRL": ("window_size", "stripe_size", "anchor_window_down_factor")}


@without_meshgrid_warning()
def load_network(state: StateFile, spec: ExpertSpec, *, trust_code: bool = False) -> LoadedNetwork:
    """Tensors -> the network they belong to, every key matched, every value finite, the scale right, frozen."""
    _require_finite(state)
    if spec.code is not None:
        loaded = load_code_network(state, spec, spec.code, trust=trust_code)
        _require_agreement(state, "parameter count", spec.parameters, loaded.parameters)
        return loaded
    found = _recognise(state)
    _require_agreement(
        state, "architecture", spec.architecture or state.header.get(ARCHITECTURE_KEY), found.architecture
    )
    if found.architecture in RANDOM_ARCHITECTURES:
        cure = "use another network"
        raise Refusal(f"{found.architecture} gives another image in every run", where=state.path, cure=cure)
    if found.scale not in SCALES:
        raise Refusal(f"scale is {found.scale}", where=state.path, cure="use a model of 2x, 3x or 4x")
    _require_agreement(state, "input channels", 3, found.input_channels)
    _require_agreement(state, "output channels", 3, found.output_channels)
    told = {**header_hyperparameters(state), **spec.hyperparameters}
    untold = ", ".join(name for name in UNTOLD.get(found.architecture, ()) if name not in told)
    if untold:
        values = "the published network's are taken; of another, give them as hyperparameters in a --catalog"
        log.warning("%s: the tensors of %s do not tell %s: %s", state.path, found.architecture, untold, values)
    network = _as_specified(found.network, told, state)
    parameters = sum(p.numel() for p in network.parameters())
    _require_agreement(state, "parameter count", spec.parameters, parameters)
    network.eval().requires_grad_(requires_grad=False)
    # Networks that pad to their window themselves give features of the padded size: the runner pads before them.
    window = getattr(network, "hyperparameters", {}).get("window_size")
    multiple = math.lcm(found.padding.multiple, window if isinstance(window, int) else 1)
    padding = found.padding.model_copy(update={"multiple": multiple})
    return LoadedNetwork(network, found.architecture, parameters, padding, found.call, scale=found.scale)


def _recognise(state: StateFile) -> Recognised:
    """Its keys tell the network, and it takes them strictly."""
    own = find_own(state.tensors)
    recognise = partial(_own, own) if own is not None else _spandrels()
    try:
        return recognise(state)
    except Refusal:
        raise
    except RuntimeError as error:
        raise Refusal(key_trouble(error), where=state.path, cure="give the complete, unchanged weights file") from None
    except KeyError as error:
        trouble = f"its keys do not fit together: there is no {error}"
        raise Refusal(trouble, where=state.path, cure="give the complete, unchanged weights file") from error
    except Exception as error:  # detection code of forty architectures meets an arbitrary file
        first = str(error).splitlines()[0][:160] if str(error) else "no reason given"
        trouble = f"the settings that its tensors' shapes imply make no network ({type(error).__name__}: {first})"
        raise Refusal(trouble, where=state.path, cure="give the complete, unchanged weights file") from error


def _own(own: OwnArchitecture, state: StateFile) -> Recognised:
    """One of the networks that are implemented here."""
    built = own.build(dict(state.tensors))
    built.network.load_state_dict(built.tensors)
    channels, padding = (built.input_channels, built.output_channels), Padding(multiple=built.multiple)
    return Recognised(built.network, own.name, built.scale, *channels, padding)


def _spandrels() -> Callable[[StateFile], Recognised]:
    """Imported where a file needs it: two seconds, with torchvision. If that fails the file is not to blame."""
    from experts.loading.spandrel_registry import recognise_with_spandrel

    return recognise_with_spandrel


def _as_specified(network: nn.Module, wanted: dict[str, Any], state: StateFile) -> nn.Module:
    """Rebuild the network where the file alone tells otherwise than the catalog has it.

    Some settings leave no trace in the tensors (GRL's anchor factor, EDSR's residual scale): both readings load
    strictly and give different images. Whatever does leave a trace still has to match, or loading fails.
    """
    guessed: dict[str, Any] = getattr(network, "hyperparameters", {})
    differing = {key: value for key, value in wanted.items() if not _same(guessed.get(key, value), value)}
    unknown = sorted(set(wanted) - set(guessed))
    if unknown:
        raise Refusal(f"has no hyperparameter '{unknown[0]}'", where=state.path, cure="correct the expert's settings")
    if not differing:
        return network
    try:
        rebuilt = type(network)(**{**guessed, **wanted})
        rebuilt.load_state_dict(network.state_dict())
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        guesses = ", ".join(f"{key}={guessed[key]!r}" for key in differing)
        what = f"does not fit the expert's hyperparameters (read from the file: {guesses}): {key_trouble(error)}"
        raise Refusal(what, where=state.path, cure="name the right expert, or give the file by its path") from None
    _require_same_buffers(rebuilt, state)
    log.debug("%s: built with %s, which leave no trace in the tensors", state.path.name, differing)
    return rebuilt


def _require_same_buffers(rebuilt: nn.Module, state: StateFile) -> None:
    """Tables that the file carries although they can be computed must be those of the network we built."""
    computed = dict(rebuilt.named_buffers())
    for key, stored in state.tensors.items():
        mine = computed.get(key.removeprefix("model."))
        if mine is not None and torch.is_tensor(stored) and tuple(stored.shape) != tuple(mine.shape):
            what = f"its table '{key}' is {tuple(stored.shape)}, the expert's settings make {tuple(mine.shape)}"
            raise Refusal(what, where=state.path, cure="correct the expert's hyperparameters")


def _require_finite(state: StateFile) -> None:
    """A NaN or infinity among the weights would poison every image in silence."""
    pending: list[tuple[object, Any]] = list(state.tensors.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif torch.is_tensor(value) and value.is_floating_point() and not _finite_or_mask(key, value):
            raise Refusal(f"the tensor '{key}' holds NaN or infinity", where=state.path, cure="fetch it again")


def _finite_or_mask(key: object, value: torch.Tensor) -> bool:
    """Attention masks may rightly hold minus infinity; nothing may hold NaN."""
    if "mask" in str(key):
        return not bool(torch.isnan(value).any())
    return bool(torch.isfinite(value).all())


def _require_agreement(state: StateFile, field: str, wanted: object, found: object) -> None:
    if wanted is not None and wanted != found:
        raise Refusal(f"{field} is {found}, wanted {wanted}", where=state.path, cure="give the right weights file")


def _same(a: object, b: object) -> bool:
    """Equal as settings: lists and tuples alike, numbers by value up to float32 rounding."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-6 * max(1.0, abs(b))
    return a == b
