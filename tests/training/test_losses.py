"""Each loss against an independent implementation, and the refusal of those whose weights are not there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import sobel
from skimage.metrics import structural_similarity

from fusion.training.losses.curriculum import WeightedLosses
from fusion.training.losses.frequency import FFT, SWT
from fusion.training.losses.perceptual import VGG
from fusion.training.losses.pixel import L1, MSE, SSIM, Charbonnier, Edge
from fusion.training.losses.registry import PLAIN, TRUNKS, build_losses
from imaging.refusal import Refusal
from tests.training.parts import images


def test_pixel_losses_against_numpy():
    sr, hr = images(1)
    d = (sr.double() - hr.double()).numpy()
    assert float(L1()(sr, hr)) == pytest.approx(np.abs(d).mean(), rel=1e-5)
    assert float(MSE()(sr, hr)) == pytest.approx((d**2).mean(), rel=1e-5)
    assert float(Charbonnier()(sr, hr)) == pytest.approx(np.sqrt(d**2 + 1e-6).mean(), rel=1e-5)


def test_ssim_against_scikit_image():
    sr, hr = images(2, batch=1, size=40)
    expected = structural_similarity(
        sr[0].double().numpy(),
        hr[0].double().numpy(),
        channel_axis=0,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert float(SSIM()(sr.double(), hr.double())) == pytest.approx(1 - expected, abs=1e-6)


@pytest.mark.parametrize("size", [(32, 40), (16, 64)])
def test_every_swt_band_against_pywavelets(size):
    image = torch.rand(1, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours = [band[0, 0].numpy() for band in SWT().transform(image)]
    theirs = pywt.swt2(image[0, 0].numpy(), "db4", level=3, trim_approx=True)
    expected = [theirs[0], *(band for level in theirs[1:] for band in level)]
    assert len(ours) == len(expected) == 10
    for mine, reference in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, reference, atol=1e-6)  # the filters are float32


def test_swt_loss_against_pywavelets():
    sr, hr = images(4, batch=1)

    def bands(image):
        return [
            np.stack(b)
            for b in zip(
                *[
                    [p[0], *(x for level in p[1:] for x in level)]
                    for p in (pywt.swt2(c, "db4", level=3, trim_approx=True) for c in image[0].double().numpy())
                ],
                strict=True,
            )
        ]

    expected = np.mean([np.abs(a - b).mean() for a, b in zip(bands(sr), bands(hr), strict=True)])
    assert float(SWT()(sr, hr)) == pytest.approx(expected, rel=1e-4)


def test_fft_against_numpy():
    sr, hr = images(5)

    def log_magnitude(image):
        return np.log1p(np.abs(np.fft.fft2(image.double().numpy(), norm="ortho")))

    assert float(FFT()(sr, hr)) == pytest.approx(np.abs(log_magnitude(sr) - log_magnitude(hr)).mean(), rel=1e-4)


def test_edge_against_scipy():
    sr, hr = images(6, batch=1)
    d = (sr - hr)[0].double().numpy()
    both = [np.abs(sobel(plane, axis=axis) / 8)[1:-1, 1:-1] for plane in d for axis in (0, 1)]
    assert float(Edge()(sr, hr)) == pytest.approx(np.mean(both), rel=1e-5)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_losses_are_zero_only_for_equal_images_and_have_gradients(name):
    loss = PLAIN[name]()
    sr, hr = images(7)
    if name == "flat":  # it looks at flat areas alone
        hr = torch.full_like(hr, 0.5)
    least = 1e-3 if name == "charbonnier" else 0.0
    assert float(loss(hr, hr)) == pytest.approx(least, abs=2e-6)
    sr.requires_grad_(True)
    value = loss(sr, hr)
    value.backward()
    assert float(value.detach()) > least
    assert sr.grad is not None and bool(sr.grad.isfinite().all()) and float(sr.grad.abs().sum()) > 0


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.sampled_from(["l1", "mse", "edge"]), st.floats(0.01, 2.0), min_size=1))
def test_the_weighted_sum_is_the_sum_of_weighted_parts(weights):
    losses = WeightedLosses(build_losses(weights, {}))
    sr, hr = images(8)
    total, parts = losses(sr, hr, weights)
    assert set(parts) == set(weights)
    assert math.isclose(float(total), sum(weights[name] * float(parts[name]) for name in weights), rel_tol=1e-5)


def test_balance_is_what_the_network_reports():
    losses = WeightedLosses({})
    sr, hr = images(9)
    total, parts = losses(sr, hr, {"balance": 0.5}, {"balance": torch.tensor(3.0)})
    assert float(total) == 1.5 and float(parts["balance"]) == 3.0
    with pytest.raises(ValueError, match="balance"):
        losses(sr, hr, {"balance": 0.5})


@pytest.mark.parametrize("name", sorted(TRUNKS))
def test_a_missing_trunk_is_refused_by_name_and_place(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(tmp_path))
    with pytest.raises(Refusal) as caught:
        build_losses(["l1", name], {})
    assert TRUNKS[name].file.place in caught.value.where
    assert TRUNKS[name].file.page in caught.value.cure


def test_an_unknown_loss_is_refused_with_the_nearest_name():
    with pytest.raises(Refusal, match="did you mean 'charbonnier'"):
        build_losses(["charbonier"], {})


def test_vgg_equals_torchvisions_features_with_a_seeded_trunk(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    reference = torchvision.models.vgg19(weights=None).features.eval()
    path = tmp_path / "vgg19.pth"
    torch.save({f"features.{key}": value for key, value in reference.state_dict().items()}, path)
    sr, hr = images(10, batch=1)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, y, expected = (sr - mean) / std, (hr - mean) / std, 0.0
    with torch.no_grad():
        for depth, layer in enumerate(reference[:35]):
            layer.inplace = False
            x, y = layer(x), layer(y)
            expected += {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}.get(depth, 0.0) * float((x - y).abs().mean())
        assert float(VGG(path)(sr, hr)) == pytest.approx(expected, rel=1e-4)


def test_a_file_that_is_no_vgg_is_refused(tmp_path):
    path = tmp_path / "vgg19.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(Refusal, match="no VGG-19"):
        VGG(path)


def test_clip_from_a_local_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    from fusion.training.losses.perceptual import CLIP

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    sr, hr = images(11)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():  # the images already have the model's size, so nothing is resized
        a, b = (model(pixel_values=(x - mean) / std).image_embeds.numpy() for x in (sr, hr))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    loss = CLIP(tmp_path)
    sr.requires_grad_(True)
    value = loss(sr, hr)
    value.backward()
    assert float(value.detach()) == pytest.approx(1 - cosine.mean(), abs=1e-5)
    assert sr.grad is not None and float(sr.grad.abs().sum()) > 0


def test_lpips_from_a_local_trunk_has_gradients(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    import lpips

    from fusion.training.losses.perceptual import LPIPS

    torch.manual_seed(0)
    trunk = torchvision.models.alexnet(weights=None)
    path = tmp_path / "alexnet.pth"
    torch.save(trunk.state_dict(), path)
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    own = reference.net.state_dict()
    reference.net.load_state_dict({key: trunk.state_dict()[f"features.{key.split('.', 1)[1]}"] for key in own})
    sr, hr = images(12, size=64)
    with torch.no_grad():
        expected = float(reference(sr * 2 - 1, hr * 2 - 1).mean())
    sr.requires_grad_(True)
    value = LPIPS(path)(sr, hr)
    value.backward()
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    assert sr.grad is not None and float(sr.grad.abs().sum()) > 0
