"""PSNR, SSIM and luma against scikit-image; LPIPS against the lpips package with the same trunk."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from imaging.files import list_images, quantize_u8, read_rgb
from imaging.metrics import luma, psnr, ssim
from imaging.metrics.perceptual import TRUNK_FILE, find_trunk, lpips_distance
from imaging.refusal import Refusal


def pair(batch: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth image and a disturbed one, both partly outside [0, 1]."""
    noise = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    phases = torch.rand(batch, 3, 1, 1, generator=noise) * 6
    hr = 0.5 + 0.55 * torch.sin(y + phases) * torch.cos(x - phases)
    return hr + 0.05 * torch.randn(hr.shape, generator=noise), hr


def levels_HWC(image_CHW: torch.Tensor) -> np.ndarray:
    return np.rint(image_CHW.permute(1, 2, 0).numpy().clip(0, 1) * 255).astype(np.uint8)


def compared(image_CHW: torch.Tensor, space: str) -> np.ndarray:
    """What scikit-image is given: cropped by 4, as float64 on the 0..255 scale."""
    cut = levels_HWC(image_CHW)[4:-4, 4:-4]
    return rgb2ycbcr(cut)[..., :1] if space == "y" else cut.astype(np.float64)


@pytest.mark.parametrize("space", ["y", "rgb"])
def test_psnr_equals_scikit_image(space: str) -> None:
    sr, hr = pair(3, 40, 31)
    ours = psnr(sr, hr, space=space)  # pyright: ignore[reportArgumentType]
    assert ours.shape == (3,)
    for i in range(3):
        theirs = peak_signal_noise_ratio(compared(hr[i], space), compared(sr[i], space), data_range=255)
        assert ours[i].item() == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("space", ["y", "rgb"])
def test_ssim_equals_scikit_image_on_the_valid_area(space: str) -> None:
    sr, hr = pair(3, 40, 31)
    ours = ssim(sr, hr, space=space)  # pyright: ignore[reportArgumentType]
    for i in range(3):
        both = structural_similarity(
            compared(hr[i], space), compared(sr[i], space), data_range=255, channel_axis=-1, full=True,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        full = np.asarray(both[1])
        assert ours[i].item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-5)


def test_luma_equals_scikit_image_and_spans_16_to_235() -> None:
    _, hr = pair(1, 20, 20)
    ours = luma(hr.double().clamp(0, 1))[0, 0].numpy() * 255
    np.testing.assert_allclose(ours, rgb2ycbcr(hr[0].double().clamp(0, 1).permute(1, 2, 0).numpy())[..., 0], atol=1e-3)
    extremes = luma(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).flatten() * 255
    assert extremes.tolist() == pytest.approx([16, 235], abs=1e-4)


def test_identical_images_are_infinitely_good() -> None:
    _, hr = pair(2, 24, 24)
    assert psnr(hr, hr).tolist() == [math.inf, math.inf]
    assert ssim(hr, hr).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_only_the_rounded_values_inside_the_border_count() -> None:
    _, hr = pair(1, 24, 24)
    whole = quantize_u8(hr).float() / 255
    other = whole + 0.4 / 255
    other[..., :4, :] = 0
    other[..., -4:] = 1
    assert psnr(other, whole).item() == math.inf
    other[..., 4, 4] = 1 - whole[..., 4, 4]
    assert psnr(other, whole).item() < 60


@settings(max_examples=25, deadline=None)
@given(height=st.integers(19, 40), width=st.integers(19, 40), seed=st.integers(0, 9))
def test_both_are_symmetric_and_bounded(height: int, width: int, seed: int) -> None:
    sr, hr = pair(1, height, width, seed)
    torch.testing.assert_close(psnr(sr, hr), psnr(hr, sr))
    torch.testing.assert_close(ssim(sr, hr), ssim(hr, sr))
    assert -1 <= ssim(sr, hr).item() < 1


def test_published_scores_of_real_networks(shared_data: Path) -> None:
    """DESIGN.md's independently measured Y-PSNR of four trained networks on Set5."""
    measured = {"hitsr": 32.558, "mambairv2light": 32.539, "eagle": 32.350, "sepsr": 32.163}
    highs = list_images(shared_data / "bench" / "Set5" / "HR")
    for network, expected in measured.items():
        folder = shared_data / "real_experts" / "Set5" / network
        scores = [psnr(read_rgb(folder / f"{hr.stem}x4.webp"), read_rgb(hr)).item() for hr in highs]
        assert np.mean(scores) == pytest.approx(expected, abs=6e-4)


def test_misuse_is_refused() -> None:
    sr, hr = pair(1, 18, 40)
    with pytest.raises(Refusal, match="18x40 leaves less than 11x11"):
        ssim(sr, hr)
    assert math.isfinite(psnr(sr, hr).item())
    with pytest.raises(ValueError, match="one shape"):
        psnr(sr, hr[..., :-1])
    with pytest.raises(Refusal, match="not numbers"):
        psnr(sr * math.nan, hr)


def save_trunk(path: Path, seed: int) -> dict[str, torch.Tensor]:
    """A file laid out like torchvision's AlexNet, with seeded random convolutions (and a classifier to be ignored)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    weights = {"classifier.6.bias": torch.zeros(1000)}
    for layer, (out, into, kernel) in shapes.items():
        spread = (2 / (into * kernel * kernel)) ** 0.5
        weights[f"features.{layer}.weight"] = torch.randn(out, into, kernel, kernel, generator=generator) * spread
        weights[f"features.{layer}.bias"] = torch.randn(out, generator=generator) * 0.1
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return weights


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_lpips_equals_the_packages_own_forward(tmp_path: Path, suffix: str) -> None:
    import lpips
    import torchvision

    weights = save_trunk(tmp_path / f"trunk{suffix}", seed=3)
    sr, hr = (quantize_u8(image).float() / 255 for image in pair(2, 64, 72))
    ours = lpips_distance(sr, hr, trunk=tmp_path / f"trunk{suffix}")
    # The reference is wired by hand from torchvision's network, not through our key mapping.
    alexnet = torchvision.models.alexnet(weights=None)
    alexnet.features.load_state_dict({k.removeprefix("features."): v for k, v in weights.items() if "features" in k})
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    for name, part in reference.net.named_children():
        assert name.startswith("slice")
        for number, layer in part.named_children():
            layer.load_state_dict(alexnet.features[int(number)].state_dict())
    with torch.no_grad():
        theirs = reference(sr, hr, normalize=True).flatten()
    assert ours.shape == (2,)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ours.min() > 0
    assert lpips_distance(hr, hr, trunk=tmp_path / f"trunk{suffix}").tolist() == [0, 0]


def test_a_missing_trunk_is_refused_with_its_name_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sr, hr = pair(1, 64, 64)
    with pytest.raises(Refusal, match=r"pretrained/metrics/alexnet-owt-7be5be79\.pth.*put torchvision's"):
        lpips_distance(sr, hr)
    folder = tmp_path / "pretrained" / "metrics"
    folder.mkdir(parents=True)
    save_trunk(folder / TRUNK_FILE, seed=0)
    assert find_trunk().name == TRUNK_FILE
    with pytest.raises(Refusal, match="sha256 does not begin as its name says"):
        lpips_distance(sr, hr)


def test_files_that_are_no_trunk_are_refused(tmp_path: Path) -> None:
    sr, hr = pair(1, 64, 64)
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, other)
    with pytest.raises(Refusal, match=r"not an AlexNet trunk \(features\.0\.bias"):
        lpips_distance(sr, hr, trunk=other)
    with pytest.raises(Refusal, match="no such LPIPS trunk"):
        lpips_distance(sr, hr, trunk=tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, says in (("text.pth", "is damaged"), ("text.safetensors", "not a whole safetensors file")):
        with pytest.raises(Refusal, match=says) as caught:
            lpips_distance(sr, hr, trunk=tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(Refusal, match="holds a list, not named tensors"):
        lpips_distance(sr, hr, trunk=tmp_path / "list.pth")


class Trap:
    """A pickle that creates a file when it is loaded carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_a_trunk_with_code_in_it_does_not_run(tmp_path: Path) -> None:
    torch.save({"features.0.weight": Trap(tmp_path / "ran")}, tmp_path / "trap.pth")
    digest = hashlib.sha256((tmp_path / "trap.pth").read_bytes()).hexdigest()[:8]
    named = (tmp_path / "trap.pth").rename(tmp_path / f"trap-{digest}.pth")
    sr, hr = pair(1, 64, 64)
    with pytest.raises(Refusal, match="holds more than tensors and was not opened"):
        lpips_distance(sr, hr, trunk=named)
    assert not (tmp_path / "ran").exists()
