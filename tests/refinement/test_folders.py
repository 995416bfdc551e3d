"""Folders, weights and prompt tensors that are missing, wrong, damaged, in shards, or on the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion.refinement.open import open_refiner
from fusion.refinement.refine import repaint
from imaging.refusal import Refusal
from tests.refinement.parts import (
    CPU,
    WIDTH,
    image_of,
    make_vae,
    need_diffusion,
    opened,
    refusal_of,
    save_sd3,
)

need_diffusion()


def test_missing_files_are_named_all_at_once(sd3: Path) -> None:
    (sd3 / "vae" / "config.json").unlink()
    (sd3 / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    line = refusal_of(sd3)
    assert "lacks vae/config.json, transformer/diffusion_pytorch_model.safetensors" in line
    assert "stable-diffusion-3-medium" in line


def test_wrong_channels_scale_and_class_are_refused(sd3: Path, tmp_path: Path, bases: Path) -> None:
    assert "in_channels is 4, 16 is needed" in refusal_of(save_sd3(tmp_path / "narrow", channels=4))
    make_vae(4, 1.5305).save_pretrained(sd3 / "vae")
    assert "latent_channels is 4, 16 is needed" in refusal_of(sd3)
    make_vae(16, 0.13).save_pretrained(sd3 / "vae")
    assert "scaling_factor is 0.13, 1.5305 is needed" in refusal_of(sd3)
    assert "lacks transformer/config.json" in refusal_of(bases / "sd2")
    shutil.copytree(bases / "sd2" / "unet", sd3 / "transformer", dirs_exist_ok=True)
    assert "_class_name is UNet2DConditionModel, SD3Transformer2DModel is needed" in refusal_of(sd3)


def test_prompt_tensors_are_checked(sd3: Path) -> None:
    torch.save(torch.zeros(5, WIDTH + 1), sd3 / "prompt_embeds.pt")
    assert f"is (5, {WIDTH + 1}), 2 axes are needed of which the last is {WIDTH}" in refusal_of(sd3)
    torch.save([1, 2], sd3 / "prompt_embeds.pt")
    assert "holds a list" in refusal_of(sd3)
    (sd3 / "prompt_embeds.pt").write_bytes(b"no pickle")
    assert "prompt_embeds.pt" in refusal_of(sd3)
    for name in ("prompt_embeds.pt", "pool_embeds.pt"):
        (sd3 / name).unlink()
    assert "lacks prompt_embeds.pt and pool_embeds.pt; put what https://github.com/Microtreei" in refusal_of(sd3)


def test_prompt_tensors_may_replace_the_text_encoder(bases: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases / "sd2", tmp_path / "sd2"))
    shutil.rmtree(folder / "text_encoder")
    assert "text_encoder" in refusal_of(folder, preset="sd-onestep")
    told = opened(bases, "sd-onestep").conditions["encoder_hidden_states"]
    save_file({"anything": told[0].contiguous()}, folder / "prompt_embeds.safetensors")
    refiner = open_refiner("sd-onestep", str(folder), None, CPU)
    assert refiner.conditions["encoder_hidden_states"].equal(told)
    assert refiner.identity["conditions"].keys() == {"prompt_embeds.safetensors"}


def test_damaged_and_incomplete_weights_are_refused(sd3: Path) -> None:
    path = sd3 / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({key: value for key, value in tensors.items() if key != "decoder.conv_out.bias"}, path)
    assert "disagree on decoder.conv_out.bias" in refusal_of(sd3)  # diffusers would fill it with random numbers
    save_file({**tensors, "foreign": torch.zeros(1)}, path)
    assert "disagree on foreign" in refusal_of(sd3)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot be loaded" in refusal_of(sd3)
    (sd3 / "vae" / "config.json").write_text("{")
    assert "cannot be read" in refusal_of(sd3)


@pytest.mark.parametrize("how", [{"max_shard_size": "100KB"}, {"variant": "fp16"}])
def test_shards_and_variants_load_alike(sd3: Path, bases: Path, how: dict[str, Any]) -> None:
    plain = opened(bases, "tsdsr")
    folder = sd3 / "transformer"
    shutil.rmtree(folder)
    plain.model.save_pretrained(folder, **how)
    refiner = open_refiner("tsdsr", str(sd3), None, CPU)
    image_CHW = image_of(32, 32)
    # Not bit for bit: tensors that lie differently in memory may be summed in another order.
    torch.testing.assert_close(
        repaint(refiner, image_CHW, "none"), repaint(plain, image_CHW, "none"), rtol=0, atol=2e-5
    )
    assert len(refiner.identity["base"]) >= 4
    if "max_shard_size" in how:
        sorted(folder.glob("*-00002-*"))[0].unlink()
        assert "this shard is missing" in refusal_of(sd3)


def test_ids_that_cannot_be_had_are_refused(monkeypatch: Any) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/x"))

    def fails(error: Exception) -> str:
        def snapshot(*_a: Any, **_k: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        with pytest.raises(Refusal) as caught:
            open_refiner("tsdsr", "someone/base", None, CPU)
        return str(caught.value)

    assert "is gated; accept its licence on its page" in fails(errors.GatedRepoError("403", response=response))
    assert "no such Hub id" in fails(errors.RepositoryNotFoundError("404", response=response))
    assert "accept its licence" in fails(errors.LocalEntryNotFoundError("offline"))
    assert "cannot be fetched (connection reset)" in fails(OSError("connection reset"))
    with pytest.raises(Refusal, match="no such folder, and no Hub id"):
        open_refiner("tsdsr", "/nowhere/at/all", None, CPU)


def test_what_is_fetched_is_what_is_read(bases: Path, monkeypatch: Any) -> None:
    """Of a Hub id only the files that are used are asked for, and the fetched folder opens like a local one."""
    from fnmatch import fnmatch

    import huggingface_hub

    asked: dict[str, Any] = {}

    def snapshot(model: str, **how: Any) -> str:
        asked.update(how, model=model)
        return str(bases / "sd2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    refiner = open_refiner("sd-onestep", "owner/base", None, CPU)
    assert asked["model"] == "owner/base"
    used = [*refiner.identity["base"], *refiner.identity["conditions"]]
    assert all(any(fnmatch(name, pattern) for pattern in asked["allow_patterns"]) for name in used)
    assert not any(fnmatch("model_index.json", pattern) for pattern in asked["allow_patterns"])
    assert json.dumps(refiner.identity)
