"""One file there and back: everything returns, nothing wrong gets in, and the Hub's mixin does the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import ModelHubMixin
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fusion.network import FusionSR, TrainingRecord
from fusion.network.network import load_model
from fusion.network.save import FILE_NAME, read_header, save_model
from imaging.refusal import Refusal
from tests.fusion.parts import SLOTS, batch_for, random_record, small_model, stir

if TYPE_CHECKING:
    from pathlib import Path

NAMES = tuple(slot.name for slot in SLOTS)
RECORD = TrainingRecord(verdict="fused", steps=12, gain_db=0.1, data="noise", details={"losses": ["l1"]})


def trained() -> FusionSR:
    model = stir(small_model(base=random_record(NAMES, groups=((0,), (1, 2)))))
    model.record = RECORD
    return model


def test_everything_comes_back(tmp_path: Path) -> None:
    model = trained()
    save_model(model, tmp_path / "m.safetensors")
    loaded = FusionSR.from_pretrained(tmp_path / "m.safetensors")
    assert loaded.settings == model.settings
    assert loaded.base.record == model.base.record
    assert loaded.record == RECORD
    assert not loaded.training
    inputs = batch_for(model.settings)
    assert torch.equal(loaded(*inputs).image_BCHW, model(*inputs).image_BCHW)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_header_is_readable_json(tmp_path: Path) -> None:
    save_model(trained(), tmp_path / FILE_NAME)
    with safe_open(tmp_path / FILE_NAME, framework="pt") as file:
        metadata = file.metadata()
    assert [slot["name"] for slot in json.loads(metadata["experts"])] == list(NAMES)
    assert "sha256" in json.loads(metadata["experts"])[0]
    assert json.loads(metadata["training"])["verdict"] == "fused"
    assert sum(json.loads(metadata["base_weights"])[0]) == pytest.approx(1)
    assert read_header(tmp_path)["config"]["refine"]["width"] == 8


def test_the_hubs_mixin_saves_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert issubclass(FusionSR, ModelHubMixin)
    model = trained()
    model.save_pretrained(tmp_path / "repo")
    assert {path.name for path in (tmp_path / "repo").iterdir()} == {FILE_NAME, "README.md"}
    inputs = batch_for(model.settings)
    assert torch.equal(FusionSR.from_pretrained(tmp_path / "repo")(*inputs).image_BCHW, model(*inputs).image_BCHW)

    asked: dict[str, Any] = {}

    def download(**options: Any) -> str:
        asked.update(options)
        return str(tmp_path / "repo" / FILE_NAME)

    monkeypatch.setattr("fusion.network.hub.hf_hub_download", download)
    loaded = FusionSR.from_pretrained("somebody/some-model", revision="v1")
    assert (asked["repo_id"], asked["revision"], asked["filename"]) == ("somebody/some-model", "v1", FILE_NAME)
    assert torch.equal(loaded(*inputs).image_BCHW, model(*inputs).image_BCHW)


def test_pushing_uploads_the_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, list[str]] = {}

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, *, folder_path: Path, **_: Any) -> str:
            sent["files"] = sorted(path.name for path in folder_path.iterdir())
            return "https://example.org/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    trained().push_to_hub("somebody/some-model")
    assert sent["files"] == ["README.md", FILE_NAME]


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_model(trained(), good)
    with safe_open(good, framework="pt") as file:
        sealed = file.metadata()
    metadata = {key: value for key, value in sealed.items() if key != "digest"}  # as files of earlier releases
    tensors = load_file(good)
    first = next(iter(sorted(tensors)))

    def refuses(match: str, changed: dict[str, Any], header: dict[str, str] | None) -> None:
        save_file(changed, tmp_path / "bad.safetensors", metadata=header)
        with pytest.raises(Refusal, match=match):
            load_model(tmp_path / "bad.safetensors")

    refuses("not those that were saved", tensors, sealed | {"training": "{}"})
    refuses("unknown entry 'digesu'", tensors, metadata | {"digesu": sealed["digest"]})
    refuses("not a fusion model", tensors, None)
    refuses("format version 9", tensors, metadata | {"version": "9"})
    refuses("header is damaged", tensors, {k: v for k, v in metadata.items() if k != "base"})
    refuses("header is damaged", tensors, metadata | {"base": "{"})
    refuses("lacks tensor", {k: v for k, v in tensors.items() if k != first}, metadata)
    refuses("unknown tensor 'more'", tensors | {"more": torch.zeros(1)}, metadata)
    refuses(f"'{first}' is", tensors | {first: torch.zeros(3, 3, 3)}, metadata)
    refuses("not those that were saved", tensors | {first: tensors[first] + 1}, metadata)
    refuses("do not follow", tensors, metadata | {"base_weights": "[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]"})
    refuses("unknown setting", tensors, metadata | {"config": '{"bandz": {}}'})
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-100])
    with pytest.raises(Refusal, match="not a whole safetensors file"):
        load_model(tmp_path / "cut.safetensors")
    with pytest.raises(Refusal, match="no such model file"):
        FusionSR.from_pretrained(tmp_path)
    with pytest.raises(Refusal, match="no such folder, file or Hub id"):
        FusionSR.from_pretrained("no/such/folder")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = trained()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(Refusal, match="not finite"):
        save_model(model, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
