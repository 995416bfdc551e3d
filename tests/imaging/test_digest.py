"""A flipped bit in a file that we write is refused, or what is read is what was written; old files are still read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cache_tools.format.store import Entry, Store
from experts.loading.weights import read_state_file, verify
from experts.spec import WeightsSource
from fusion.budget.model import BudgetModel
from fusion.network import FusionSR
from fusion.network.save import save_model
from fusion.training.loop.checkpoint import load_checkpoint, save_checkpoint
from fusion.training.loop.export import export_weights
from fusion.training.settings import CheckpointSettings
from fusion.training.tasks.initial_statistics import Channels, InitialStatistics
from imaging.paths import ROOT
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from imaging.tensors.safe import DIGEST, read_safetensors, write_safetensors
from imaging.tensors.seal import read_json, sealed, unsealed
from tests.cache.parts import make_cache
from tests.fusion.parts import random_record, small_model, stir

FLIPS = 250


def state() -> dict[str, Any]:
    return {"network": {"w": torch.randn(5, 7), "n": torch.tensor(3)}, "optimizer": {0: [(0.9, 1e-8)]}, "rng": b"\1\2"}


def write_weights(folder: Path) -> Path:
    hyperparameters = {"width": 48, "scale": 0.125}
    export_weights(
        folder / "w.safetensors",
        {"w": torch.randn(3, 4)},
        architecture="EDSR",
        hyperparameters=hyperparameters,
        provenance={"x": 1.25},
    )
    return folder / "w.safetensors"


def read_weights(path: Path) -> object:
    state = read_state_file(path)
    return state.tensors, sorted(state.header.items())


def write_fusion(folder: Path) -> Path:
    save_model(stir(small_model(), 0.05), folder / "model.safetensors")
    return folder / "model.safetensors"


def read_fusion(path: Path) -> object:
    model = FusionSR.from_pretrained(path)
    return repr(model.settings), repr(model.record), repr(model.base.record), model.state_dict()


def write_budget(folder: Path) -> Path:
    BudgetModel.read(ROOT / "pretrained" / "budget.json").write(folder / "budget.json")
    return folder / "budget.json"


def write_manifest(folder: Path) -> Path:
    return make_cache(folder, [(8, 8)]) / "manifest.json"


def write_checkpoint(folder: Path) -> Path:
    return save_checkpoint(folder, 1, state(), CheckpointSettings(every=1))


def write_base(folder: Path) -> Path:
    channels = Channels(mean=(0.125, 2.5), spread=(1.0, 3.0))
    statistics = InitialStatistics(fingerprint="abc", base=random_record(("a", "b")), features={"a": channels})
    (folder / "base.json").write_text(json.dumps(sealed(statistics.model_dump(mode="json"))))
    return folder / "base.json"


def read_base(path: Path) -> object:
    return parse_settings(
        InitialStatistics, unsealed(read_json(path, cure="again"), path, cure="again"), where=str(path)
    )


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "weights": (write_weights, read_weights),
    "fusion": (write_fusion, read_fusion),
    "budget": (write_budget, BudgetModel.read),
    "manifest": (write_manifest, lambda path: Store(path.parent).manifest),
    "checkpoint": (write_checkpoint, load_checkpoint),
    "base": (write_base, read_base),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_flipped_bit_is_silent(tmp_path: Path, kind: str) -> None:
    write, read = KINDS[kind]
    torch.manual_seed(0)
    path = write(tmp_path)
    whole, truth, rng, refused = path.read_bytes(), repr(read(path)), random.Random(1), 0
    reach = min(len(whole), 4000)  # headers and JSON rather than the bulk of the numbers
    for position in [*rng.sample(range(reach), min(reach, FLIPS)), *rng.sample(range(len(whole)), 30)]:
        data = bytearray(whole)
        data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            found = read(path)
        except Refusal as refusal:
            assert len(str(refusal).splitlines()) == 1
            refused += 1
            continue
        assert repr(found) == truth, position
    assert refused > 20


def unsealed_safetensors(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        header = {key: value for key, value in file.metadata().items() if key != DIGEST}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=header)


def unsealed_json(path: Path) -> None:
    document = json.loads(path.read_text())
    del document[DIGEST]
    path.write_text(json.dumps(document))


def unsealed_state(path: Path) -> None:
    document = torch.load(path, weights_only=True)
    del document[DIGEST]
    torch.save(document, path)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_files_of_before_are_read_with_a_note(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    write, read = KINDS[kind]
    path = write(tmp_path)
    caplog.set_level("INFO")
    truth = repr(read(path))
    assert "carries no digest" not in caplog.text
    {".json": unsealed_json, ".pt": unsealed_state, ".safetensors": unsealed_safetensors}[path.suffix](path)
    assert repr(read(path)) == truth
    assert f"{path}: carries no digest" in caplog.text


def test_what_ships_carries_its_digest(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    folder = ROOT / "pretrained"
    models = [path for path in folder.glob("*.safetensors") if not path.with_name(f"{path.name}.json").exists()]
    for path in models:  # the others are experts, whose records hold the sha256 of the whole file
        with safe_open(path, "pt") as file:
            assert DIGEST in file.metadata(), path
        read_safetensors(path, cure="fetch it again")
        if path.stem in ("fusion", "strong"):
            FusionSR.from_pretrained(path)
    for path in folder.glob("*budget.json"):
        BudgetModel.read(path)
    assert folder / "fusion.safetensors" in models and "digest" not in caplog.text


def test_files_from_elsewhere_need_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"format": "pt", "architecture": "ESRGAN"})
    assert read_state_file(tmp_path / "a.safetensors").header["architecture"] == "ESRGAN"
    assert caplog.text == ""


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16])
def test_numbers_that_no_network_has_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"w": torch.zeros(2, dtype=torch.uint8).to(dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(Refusal, match="'w' holds numbers of the kind"):
        read_safetensors(tmp_path / "a.safetensors", cure="fetch it again")


def test_a_changed_line_of_the_index_is_read_from_the_item_again(tmp_path: Path) -> None:
    """A digit of a height would otherwise choose other crops."""
    store = Store(make_cache(tmp_path, [(16, 16), (24, 16)]))
    (index,) = store.index.glob("*.jsonl")
    truth, text = store.entries(), index.read_text()
    assert '"height": 24' in text
    index.write_text(text.replace('"height": 24', '"height": 25'))
    assert len(list(store.index_lines())) == 1
    plain = [entry.model_copy(update={"stamp": ""}) for entry in truth]  # only the index knows the sources' times
    assert [entry.model_copy(update={"stamp": ""}) for entry in store.entries()] == plain
    lines = [{key: value for key, value in json.loads(line).items() if key != "crc"} for line in text.splitlines()]
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))  # as earlier releases wrote them
    assert list(store.index_lines()) == [Entry.model_validate(line) for line in lines]


def test_the_record_beside_weights_is_held_against_them(tmp_path: Path) -> None:
    path = write_weights(tmp_path)
    source = WeightsSource(file=str(path))
    sha256 = verify(path, source)
    record = path.with_name(f"{path.name}.json")
    record.write_text(json.dumps({"sha256": sha256, "licence": "MIT"}))
    assert verify(path, source) == sha256
    record.write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(Refusal, match=r"w.safetensors.json has 0000"):
        verify(path, source)


def test_others_may_read_a_file_of_weights_where_they_may_read_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_safetensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_digest_covers_names_types_and_shapes(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(1, dtype=torch.bfloat16),
        "c": torch.tensor(1),
        "d": torch.empty(0),
    }
    write_safetensors(tmp_path / "a.safetensors", tensors, {"x": "1"})
    header, found = read_safetensors(tmp_path / "a.safetensors", cure="again")
    assert header == {"x": "1"} and {key: str(one) for key, one in found.items()} == {
        key: str(one) for key, one in tensors.items()
    }
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
    renamed = {key.upper(): one for key, one in tensors.items()}
    for changed in (renamed, tensors | {"a": torch.zeros(3, 2)}, tensors | {"b": torch.zeros(1).half()}):
        save_file(changed, tmp_path / "b.safetensors", metadata=metadata)
        with pytest.raises(Refusal, match="not those that were saved"):
            read_safetensors(tmp_path / "b.safetensors", cure="again")
