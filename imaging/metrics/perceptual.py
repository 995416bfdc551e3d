"""sr_BCHW and hr_BCHW in [0, 1] -> LPIPS distance of each image, with a trunk whose weights are a local file.

The trunk is torchvision's AlexNet, trained on ImageNet; its file is never downloaded and never replaced by random
weights. The linear heads come with the lpips package (version 0.1 of the metric).
"""

from __future__ import annotations

import hashlib
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imaging.paths import pretrained_folder, pretrained_folders
from imaging.quantize import quantize_u8
from imaging.refusal import Refusal
from imaging.tensors.safe import read_safetensors
from imaging.tensors.unpickle import load_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

TRUNK_FILE = "alexnet-owt-7be5be79.pth"
TRUNK_FOLDER = Path("pretrained/metrics")
_CURE = (
    f"put torchvision's {TRUNK_FILE} (https://download.pytorch.org/models/{TRUNK_FILE}) "
    f"or its .safetensors into {TRUNK_FOLDER}/"
)


def find_trunk() -> Path:
    """The AlexNet file in `metrics/` of a folder of weights, .safetensors first; or refused with its place."""
    folders = (TRUNK_FOLDER, *(folder / "metrics" for folder in pretrained_folders()))
    for folder in folders:
        for name in (Path(TRUNK_FILE).with_suffix(".safetensors").name, TRUNK_FILE):
            if (folder / name).is_file():
                return folder / name
    place = pretrained_folder() / "metrics" / TRUNK_FILE
    raise Refusal("the AlexNet trunk that LPIPS needs is missing", where=place, cure=_CURE)


def lpips_distance(sr_BCHW: Tensor, hr_BCHW: Tensor, *, trunk: Path | None = None) -> Tensor:
    """LPIPS (AlexNet, v0.1), one float32 per image, on values rounded to 8 bits; 0 where the images are identical."""
    if sr_BCHW.shape != hr_BCHW.shape or sr_BCHW.ndim != 4 or sr_BCHW.shape[1] != 3:
        shapes = f"{tuple(sr_BCHW.shape)} and {tuple(hr_BCHW.shape)}"
        raise ValueError(f"expected two RGB batches of one shape, got {shapes}")
    path = trunk or find_trunk()
    if not path.is_file():
        raise Refusal("no such LPIPS trunk file", where=path, cure=_CURE)
    model = load_lpips(path).to(sr_BCHW.device)
    with torch.no_grad():
        return model(_centred(sr_BCHW), _centred(hr_BCHW)).flatten()


def load_lpips(path: Path) -> nn.Module:
    """The frozen network itself, taking images in [-1, 1]: what a training loss needs, which must not round."""
    return _model(path.resolve(), path.stat().st_mtime_ns)


def _centred(rgb_BCHW: Tensor) -> Tensor:
    """[0, 1] -> rounded to 8 bits, in [-1, 1]."""
    return quantize_u8(rgb_BCHW).float() / 127.5 - 1


@lru_cache(maxsize=2)
def _model(path: Path, _modified: int) -> nn.Module:
    import lpips  # takes a second and imports torchvision: only when a distance is computed

    weights = _trunk_weights(path)
    # Its random initial weights are replaced below; drawing them must not advance the caller's random generator.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips uses deprecated arguments of torchvision
        model = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    # lpips keeps AlexNet's `features.N` as `sliceS.N`: the layer number N finds the weights.
    own = model.net.state_dict()
    trunk_keys = {key: f"features.{key.split('.', 1)[1]}" for key in own}
    missing = [name for name in trunk_keys.values() if name not in weights]
    differing = [name for key, name in trunk_keys.items() if name in weights and weights[name].shape != own[key].shape]
    if missing or differing:
        raise Refusal(
            f"is not an AlexNet trunk ({(missing + differing)[0]} is missing or differs)", where=path, cure=_CURE
        )
    model.net.load_state_dict({key: weights[name] for key, name in trunk_keys.items()}, strict=True)
    return model.eval().requires_grad_(False)


def _trunk_weights(path: Path) -> dict[str, Tensor]:
    """Load a state dict without running code from it; a hash in the file's name must match its bytes."""
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if named and hashlib.sha256(path.read_bytes()).hexdigest()[:8] != named[1]:
        raise Refusal("is damaged: its sha256 does not begin as its name says", where=path, cure=_CURE)
    if path.suffix != ".safetensors":
        return load_tensors(path, cure=_CURE)
    return read_safetensors(path, cure=_CURE)[1]
