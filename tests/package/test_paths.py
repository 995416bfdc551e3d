"""Where weights and configs are looked for, and where new ones are written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from championship_sr.command import dispatch
from experts.catalog import load_catalog
from experts.loading.weights import find_weights
from fusion.budget.run import find_budget_model
from fusion.inference.model_selection import DEFAULT, find_preset
from fusion.training.settings import TrainSettings
from imaging import paths
from imaging.refusal import Refusal
from imaging.settings import load_settings

SHIPPED = paths.ROOT / "pretrained"


@pytest.fixture
def as_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of weights, with the code told that it does not lie in a checkout."""
    monkeypatch.setattr(paths, "IN_CHECKOUT", False)
    monkeypatch.delenv(paths.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "championship-sr" / "pretrained"


def put(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(SHIPPED / name, folder / name))


def test_a_checkout_reads_and_writes_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(paths.ENVIRONMENT, raising=False)
    assert paths.pretrained_folder() == SHIPPED
    assert paths.pretrained_folders() == (SHIPPED,)


def test_the_environments_folder_comes_first_then_the_users_then_the_shipped(
    as_installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_catalog(None).get("edsr-s")
    chosen = tmp_path / "chosen"
    assert paths.pretrained_folder() == as_installed
    assert find_weights(spec)[0] == SHIPPED / "edsr_s.safetensors"
    users = put("edsr_s.safetensors", as_installed)
    assert find_weights(spec)[0] == users
    monkeypatch.setenv(paths.ENVIRONMENT, str(chosen))
    assert paths.pretrained_folder() == chosen
    assert find_weights(spec)[0] == users
    assert find_weights(spec)[0] != put("edsr_s.safetensors", chosen)
    assert find_weights(spec)[0] == chosen / "edsr_s.safetensors"


def test_the_default_model_and_its_budget_come_from_one_folder(as_installed: Path) -> None:
    assert find_preset(DEFAULT) == SHIPPED / "default.yaml"
    assert find_budget_model(DEFAULT) == SHIPPED / "budget.json"
    put("default.yaml", as_installed)
    put("budget.json", as_installed)
    assert find_preset(DEFAULT) == as_installed / "default.yaml"
    assert find_budget_model(DEFAULT) == as_installed / "budget.json"


def test_configs_and_what_they_name_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = paths.find_shipped(Path("configs/expert_msg_real.yaml"))
    assert config == paths.CONFIGS / "expert_msg_real.yaml"
    settings = load_settings(TrainSettings, config)  # reads configs/degrade_mixed.yaml
    assert settings.data.degrade is not None
    assert settings.network.start_from is not None
    assert paths.find_shipped(settings.network.start_from) == SHIPPED / "msg.safetensors"
    mine = tmp_path / "configs" / "expert_msg_real.yaml"
    mine.parent.mkdir()
    mine.touch()
    assert paths.find_shipped(Path("configs/expert_msg_real.yaml")) == Path("configs/expert_msg_real.yaml")
    assert paths.find_shipped(Path("elsewhere/msg.yaml")) == Path("elsewhere/msg.yaml")


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    "words", ["fusion bench", "fusion bench-inference", "fusion bench-pareto", "experts bench-native"]
)
def test_benchmarks_are_refused_without_a_checkout(words: str) -> None:
    with pytest.raises(Refusal, match="run `python -m .*bench.*` in a checkout of the repository"):
        dispatch(words.split())
