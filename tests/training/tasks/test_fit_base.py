"""`python -m fusion fit-base`: a model that is the base and nothing else, of whatever experts a cache holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cache_tools.read.reader import CacheReader
from fusion.__main__ import main
from fusion.network.network import load_model
from imaging.command import DONE, REFUSED, run
from tests.training.parts import make_cache


def test_the_model_is_the_base_and_beats_every_expert_it_was_fitted_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = make_cache(tmp_path / "cache")
    out = tmp_path / "base.safetensors"
    assert run(main, ["fit-base", str(cache), "--out", str(out), "--note", "a test"]) == DONE
    model = load_model(out).eval()
    assert not list(model.parameters())
    assert model.record.verdict == "base"
    assert model.record.details == {"note": "a test"}
    reader = CacheReader(cache)
    assert model.settings.names == tuple(reader.experts)
    errors: list[np.ndarray] = []
    for entry in reader.entries:
        batch = reader.read(entry.id)
        with torch.no_grad():
            fused_BCHW = model(batch.lr_BCHW, batch.sr_BECHW, {}, reader.experts).image_BCHW
            assert torch.equal(fused_BCHW, model.base(batch.lr_BCHW, batch.sr_BECHW.clamp(0, 1), reader.experts))
        both = torch.cat([batch.sr_BECHW[0], fused_BCHW])
        errors.append((both - batch.hr_BCHW).square().mean(dim=(1, 2, 3)).numpy())
    *alone, fused = np.mean(errors, axis=0)
    assert fused < min(alone)


def test_a_missing_cache_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["fit-base", str(tmp_path / "none"), "--out", str(tmp_path / "base.safetensors")]) == REFUSED
    assert capsys.readouterr().err.startswith("refused: ")
    assert not (tmp_path / "base.safetensors").exists()
