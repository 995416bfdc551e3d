"""A folder of images as an expert: what is in the folder is what comes out, and nothing else ever does."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experts.image_folder import ImageFolderExpert
from experts.open import open_experts
from imaging.refusal import Refusal
from tests.experts.parts import image

NAMES = ("babyx4.png", "sub/bird.webp")


def folder_of(
    root: Path, names: tuple[str, ...] = ("babyx4.png", "sub/bird.webp")
) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with one random 32x24 image per name, and the pixels."""
    folder, pixels = root / "foreign", {}
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rgb = np.random.default_rng(index).integers(0, 256, (32, 24, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(path, lossless=True)
        pixels[name] = rgb
    return folder, pixels


def test_images_come_out_as_they_lie_there(tmp_path: Path) -> None:
    folder, pixels = folder_of(tmp_path)
    (expert,) = open_experts([f"images:{folder}"])
    output = expert.run(image(8, 6, batch=2), ["baby", "sub/bird"])
    assert expert.name == "foreign"
    assert output.feat_BCHW is None
    for sr_CHW, rgb in zip(output.sr_BCHW, pixels.values(), strict=True):
        assert np.array_equal((sr_CHW.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8), rgb)


def test_features_beside_the_images(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, ("babyx4.png",))
    (folder / "features").mkdir()
    feat_CHW = np.random.default_rng(5).normal(size=(7, 8, 6)).astype(np.float16)
    np.save(folder / "features" / "baby.npy", feat_CHW)
    expert = ImageFolderExpert(folder)
    output = expert.run(image(8, 6), ["baby"])
    assert output.feat_BCHW is not None
    assert np.array_equal(output.feat_BCHW[0].numpy(), feat_CHW.astype(np.float32))
    assert expert.identity.channels == 7
    with pytest.raises(Refusal, match="wanted \\(7, 8, 7\\)|four times its LR"):
        expert.run(image(8, 7), ["baby"])


def test_a_changed_folder_is_another_expert(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path)
    before = ImageFolderExpert(folder).identity
    assert ImageFolderExpert(folder).identity == before
    with Image.open(folder / "babyx4.png") as picture:
        picture.rotate(180).save(folder / "babyx4.png")
    assert ImageFolderExpert(folder).identity != before


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path)
    expert = ImageFolderExpert(folder)
    with pytest.raises(Refusal, match="has nothing for item 'woman'"):
        expert.run(image(8, 6), ["woman"])
    with pytest.raises(Refusal, match="is 24x32, four times its LR image is 28x32"):
        expert.run(image(8, 7), ["baby"])
    with pytest.raises(ValueError, match="name of every image"):
        expert.run(image(8, 6))
    with pytest.raises(Refusal, match="no such folder"):
        open_experts(["images:/nowhere/at/all"])
    Image.new("RGB", (24, 32)).save(folder / "baby.png")
    with pytest.raises(Refusal, match="are both 'baby'"):
        ImageFolderExpert(folder)


def test_a_pickled_feature_array_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, ("baby.png",))
    (folder / "features").mkdir()
    target = folder / "features" / "baby.npy"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.mkdir, (tmp_path / "owned",)

    np.save(target, np.array([Evil()], dtype=object), allow_pickle=True)
    assert pickle.dumps(Evil())
    with pytest.raises(Refusal, match="no plain .npy"):
        ImageFolderExpert(folder).run(image(8, 6), ["baby"])
    assert not (tmp_path / "owned").exists()
    np.save(target, np.full((2, 8, 6), np.nan, dtype=np.float32))
    with pytest.raises(Refusal, match="NaN"):
        ImageFolderExpert(folder).run(image(8, 6), ["baby"])


def test_the_real_outputs_of_a_published_network_join(shared_data: Path) -> None:
    """HiT-SR's images of Set5 through the expert: nearer to the truth than bicubic by more than 1 dB."""
    from imaging.files import read_rgb
    from imaging.metrics import psnr

    expert = ImageFolderExpert(shared_data / "real_experts" / "Set5" / "hitsr")
    lr_BCHW = read_rgb(shared_data / "bench" / "Set5" / "LRx4" / "img_001x4.png")
    hr_BCHW = read_rgb(shared_data / "bench" / "Set5" / "HR" / "img_001.png")
    sr_BCHW = expert.run(lr_BCHW, ["img_001"]).sr_BCHW
    bicubic_BCHW = torch.nn.functional.interpolate(lr_BCHW, scale_factor=4, mode="bicubic").clamp(0, 1)
    assert float(psnr(sr_BCHW, hr_BCHW)) > float(psnr(bicubic_BCHW, hr_BCHW)) + 1.0
