"""Each profile -> its bytes per LR pixel and its error in features and SR images of real networks.

The features come from small random-weight networks of the four reference architectures with their true channel
counts, run on photographs; the SR images are bicubic, since untrained networks give no images.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.cache.fixtures import make_outputs, write_item, write_pt
from benchmarks.cache.networks import make_networks, write_photographs
from cache_tools.format.codec import decode_image, dequantize_whole, encode_features, encode_sr
from cache_tools.format.schema import PROFILES
from imaging.files import list_images, read_rgb
from imaging.resize import downscale, resize_bicubic

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from cache_tools.format.schema import Profile


def measure_sizes(work: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Real files of one whole image and of one region of 128x128, in each profile and in the older layout."""
    results: dict[str, Any] = {}
    for label, (height, width) in (("whole", size), ("region", (128, 128))):
        loaded, outputs = make_outputs(height, width, seed=1000)
        sizes = {"pt": write_pt(work / f"{label}.pt", loaded, outputs).stat().st_size}
        (work / f"{label}.pt").unlink()
        for profile in PROFILES:
            path = write_item(work / label / profile, profile, loaded, outputs)
            sizes[profile] = path.stat().st_size
            path.unlink()
        results[label] = {name: round(count / (height * width), 1) for name, count in sizes.items()}
    return results


def measure_errors(work: Path) -> dict[str, Any]:
    """Relative L2 error of the features, and dB of the SR images: against the unrounded ones, and lost against HR."""
    networks = make_networks()
    write_photographs(work / "errors", lr_size=64, count=2)
    photos_BCHW = [read_rgb(path) for path in list_images(work / "errors" / "hr")]
    features = {
        expert.name: [expert.run(downscale(hr).clamp(0, 1)).feat_BCHW for hr in photos_BCHW] for expert in networks
    }
    results: dict[str, Any] = {}
    for name, profile in PROFILES.items():
        errors = {
            expert: round(_relative_error([feat[0] for feat in feats if feat is not None], profile), 6)
            for expert, feats in features.items()
        }
        results[name] = {"features": errors if profile.features else None, **_image_error(photos_BCHW, profile)}
    return results


def _relative_error(feats_CHW: list[Tensor], profile: Profile) -> float:
    if profile.features is None:
        return math.nan
    wrong, whole = 0.0, 0.0
    for feat_CHW in feats_CHW:
        codes_CHW, scale_TUC2 = encode_features(feat_CHW, profile, where="bench")
        stored_CHW = codes_CHW.float() if scale_TUC2 is None else dequantize_whole(codes_CHW, scale_TUC2)
        wrong += float((stored_CHW.double() - feat_CHW).square().sum())
        whole += float(feat_CHW.double().square().sum())
    return math.sqrt(wrong / whole)


def _image_error(photos_BCHW: list[Tensor], profile: Profile) -> dict[str, float | None]:
    to_float, lost = [], []
    for hr_BCHW in photos_BCHW:
        sr_BCHW = resize_bicubic(downscale(hr_BCHW), scale=4).clamp(0, 1)
        stored_BCHW = decode_image(encode_sr(sr_BCHW, profile, where="bench"))
        to_float.append(_db(stored_BCHW, sr_BCHW))
        lost.append(_db(sr_BCHW, hr_BCHW) - _db(stored_BCHW, hr_BCHW))
    exact = not all(map(math.isfinite, to_float))
    return {
        "sr_db": None if exact else round(sum(to_float) / len(to_float), 2),
        "sr_db_lost": round(sum(lost) / len(lost), 5),
    }


def _db(image: Tensor, reference: Tensor) -> float:
    """PSNR over RGB in float, unrounded: rounding is what is measured."""
    error = float((image.double() - reference).square().mean())
    return -10 * math.log10(error) if error else math.inf
