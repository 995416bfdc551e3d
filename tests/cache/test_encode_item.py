"""What experts give, made into an item's arrays: their order, scales, and what must not reach the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from cache_tools.write.encode_item import encode_item
from cache_tools.write.load import LoadedJob, load_job
from cache_tools.write.recipe import ExtractSettings, jobs_for, make_recipe
from experts.spec import Expert, ExpertOutput
from imaging.refusal import Refusal
from tests.cache.parts import experts, write_images

if TYPE_CHECKING:
    from pathlib import Path


def loaded_and_outputs(folder: Path, **settings: Any) -> tuple[Any, LoadedJob, list[ExpertOutput], list[Expert]]:
    how = ExtractSettings(out=folder / "c", hr=write_images(folder / "hr", [(40, 33)]), **settings)
    nets = experts(folder / "w")
    recipe, (job,) = make_recipe(how, nets), jobs_for(how)[0]
    loaded = load_job(job, 0)
    lr_BCHW = loaded.lr_CHW[None].float() / 255
    return recipe, loaded, [net.run(lr_BCHW) for net in nets], nets


def test_an_items_arrays_are_stacked_in_the_recipes_order(tmp_path: Path) -> None:
    recipe, loaded, outputs, _ = loaded_and_outputs(tmp_path, profile="lossless")
    arrays = encode_item(recipe, loaded, outputs)
    assert set(arrays) == {"lr", "hr", "sr", "feat"}
    np.testing.assert_array_equal(arrays["lr"], loaded.lr_CHW)
    assert loaded.hr_CHW is not None
    np.testing.assert_array_equal(arrays["hr"], loaded.hr_CHW)
    np.testing.assert_array_equal(arrays["sr"], torch.stack([one.sr_BCHW[0] for one in outputs]))
    feats = [one.feat_BCHW[0] for one in outputs if one.feat_BCHW is not None]
    np.testing.assert_array_equal(arrays["feat"], torch.cat(feats))
    assert all(array.flags.c_contiguous for array in arrays.values())


def test_scales_lie_beside_the_codes_expert_by_expert(tmp_path: Path) -> None:
    recipe, loaded, outputs, _ = loaded_and_outputs(tmp_path, profile="compact")
    arrays = encode_item(recipe, loaded, outputs)
    assert arrays["feat_scale"].shape == (2, 2, 14, 2)
    feats = torch.cat([one.feat_BCHW[0] for one in outputs if one.feat_BCHW is not None]).numpy()
    np.testing.assert_allclose(arrays["feat_scale"][0, 0, :, 1], feats[:, :32, :32].min((1, 2)))
    np.testing.assert_allclose(arrays["feat_scale"][1, 1, :, 1], feats[:, 32:, 32:].min((1, 2)))


def test_without_features_there_are_only_images(tmp_path: Path) -> None:
    recipe, loaded, outputs, _ = loaded_and_outputs(tmp_path, profile="images")
    assert set(encode_item(recipe, loaded, outputs)) == {"lr", "hr", "sr"}


@pytest.mark.parametrize("wrong", ["none", "too many", "nan", "infinite", "image"])
def test_what_an_expert_must_not_say_does_not_reach_the_disk(tmp_path: Path, wrong: str) -> None:
    recipe, loaded, outputs, _ = loaded_and_outputs(tmp_path, profile="compact")
    last = outputs[1]
    assert last.feat_BCHW is not None
    feat_BCHW, sr_BCHW = last.feat_BCHW.clone(), last.sr_BCHW.clone()
    changed: dict[str, Any] = {
        "none": None,
        "too many": torch.cat([feat_BCHW, feat_BCHW], 1),
        "nan": feat_BCHW.index_fill(1, torch.tensor([7]), float("nan")),
        "infinite": feat_BCHW.index_fill(1, torch.tensor([7]), float("-inf")),
    }
    says = {
        "none": "gave 0 feature channels",
        "too many": "gave 16 feature channels",
        "nan": "features hold NaN or infinity",
        "infinite": "features hold NaN or infinity",
        "image": "SR image holds NaN or infinity",
    }
    if wrong == "image":
        sr_BCHW[0, 0, 0, 0] = float("nan")
    outputs[1] = ExpertOutput(sr_BCHW, changed.get(wrong, feat_BCHW))
    with pytest.raises(Refusal, match=says[wrong]) as caught:
        encode_item(recipe, loaded, outputs)
    if wrong != "image":
        assert f"expert e1 on item {loaded.job.id}" in str(caught.value)


@pytest.mark.parametrize(("profile", "says"), [("lossless", "image holds NaN"), ("half", "16-bit")])
def test_what_a_profile_cannot_hold_is_refused_by_name(tmp_path: Path, profile: str, says: str) -> None:
    recipe, loaded, outputs, _ = loaded_and_outputs(tmp_path, profile=profile)
    last = outputs[1]
    assert last.feat_BCHW is not None
    if profile == "half":
        outputs[1] = ExpertOutput(last.sr_BCHW, last.feat_BCHW + 1e5)
    else:
        outputs[1] = ExpertOutput(last.sr_BCHW / 0, last.feat_BCHW)
    with pytest.raises(Refusal, match=f"^expert e1 on item {loaded.job.id}: .*{says}"):
        encode_item(recipe, loaded, outputs)


def test_as_many_outputs_as_experts(tmp_path: Path) -> None:
    recipe, loaded, outputs, _ = loaded_and_outputs(tmp_path, profile="compact")
    with pytest.raises(ValueError, match="longer"):
        encode_item(recipe, loaded, outputs[:1])
