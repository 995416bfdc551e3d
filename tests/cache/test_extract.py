"""From folders to items: pairing, regions, flips, lack of memory, and what must be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from cache_tools.format.store import Store
from cache_tools.read.reader import CacheReader, iterate_items
from cache_tools.write.extract import extract
from cache_tools.write.jobs import make_jobs
from cache_tools.write.pairs import Source, find_sources
from cache_tools.write.recipe import ExtractSettings
from experts.run import NetworkExpert
from imaging.files import read_rgb, write_picture
from imaging.refusal import Refusal
from imaging.resize import downscale
from tests.cache.parts import command, command_json, experts, make_cache, weights_files, write_images

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def paired(folder: Path) -> tuple[Path, Path]:
    """HR a, b, c and LR ax4, bx4, cx4."""
    hr = write_images(folder / "hr")
    for path in sorted(hr.iterdir()):
        write_picture(folder / "lr" / f"{path.stem}x4.png", downscale(read_rgb(path)).clamp(0, 1))
    return hr, folder / "lr"


def test_own_bicubic_equals_given_lr_but_for_the_record(tmp_path: Path) -> None:
    hr, lr = paired(tmp_path)
    own = make_cache(tmp_path / "own")
    nets = experts(tmp_path / "weights")
    extract(ExtractSettings(out=tmp_path / "given", hr=hr, lr=lr), nets)
    for one, other in zip(iterate_items(own), iterate_items(tmp_path / "given"), strict=True):
        assert torch.equal(one.lr_BCHW, other.lr_BCHW)
        assert torch.equal(one.sr_BECHW, other.sr_BECHW)
    degradations = [Store(root).manifest.recipe.degradation for root in (own, tmp_path / "given")]
    assert "bicubic" in degradations[0]
    assert degradations[1] == "LR files as given"


def test_what_does_not_pair_is_listed_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hr, lr = paired(tmp_path)
    write_picture(lr / "ax4.png", torch.rand(1, 3, 41, 48))
    (hr / "b.png").write_bytes((hr / "b.png").read_bytes()[:200])
    write_picture(lr / "lonelyx4.png", torch.rand(1, 3, 16, 16))
    write_picture(hr / "single.png", torch.rand(1, 3, 64, 64))
    (hr / "junk.png").write_bytes(b"this is no image")
    (lr / "junk.png").write_bytes(b"neither is this")
    words = ("extract", "--hr", hr, "--lr", lr, "--out", tmp_path / "c")
    words = (*words, "--experts", ",".join(weights_files(tmp_path / "w")))
    code, report = command_json(capsys, *words)
    assert code == 1
    assert [item[0] for item in report["made"]] == ["c"]
    reasons = {one["item"].partition("-")[0]: one["reason"] for one in report["failures"]}
    assert set(reasons) == {"a", "b", "lonely", "single", "junk"}
    assert "exactly 4 times" in reasons["a"]
    assert "no HR image" in reasons["lonely"]
    assert "no LR image" in reasons["single"]
    assert "b.png" in reasons["b"]
    assert command(*words) == 1


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "hr" / "x.png", torch.rand(1, 3, 64, 64))
    write_picture(tmp_path / "lr" / "y.png", torch.rand(1, 3, 16, 16))
    with pytest.raises(Refusal, match="no image can be used"):
        find_sources(tmp_path / "hr", tmp_path / "lr")
    assert command("extract", "--hr", tmp_path / "none", "--out", tmp_path / "c", "--experts", "edsr-l") == 2


def test_hr_that_is_no_multiple_of_4_is_cropped(tmp_path: Path) -> None:
    write_picture(tmp_path / "hr" / "odd.png", torch.rand(1, 3, 67, 70))
    extract(ExtractSettings(out=tmp_path / "c", hr=tmp_path / "hr"), experts(tmp_path / "w"))
    (item,) = iterate_items(tmp_path / "c")
    assert item.hr_BCHW is not None
    assert item.hr_BCHW.shape == (1, 3, 64, 68)
    assert torch.allclose(item.hr_BCHW, read_rgb(tmp_path / "hr" / "odd.png")[..., :64, :68])


def test_lr_alone_has_no_hr_and_says_so(tmp_path: Path) -> None:
    write_images(tmp_path / "lr", [(16, 20)], scale=1)
    extract(ExtractSettings(out=tmp_path / "c", lr=tmp_path / "lr"), experts(tmp_path / "w"))
    reader = CacheReader(tmp_path / "c")
    assert not reader.has_hr
    assert next(iter(reader)).hr_BCHW is None


def test_same_names_in_different_folders_stay_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_picture(tmp_path / "hr" / folder / "same name!.png", torch.rand(1, 3, 64, 64))
    sources, _ = find_sources(tmp_path / "hr", None)
    ids = [job.id for job in make_jobs(sources, regions=0, region_size=0, seed=0, dihedral=False)]
    assert len(set(ids)) == 2
    assert all(one.startswith("same-name-") for one in ids)


def test_regions_are_those_parts_of_the_image(tmp_path: Path) -> None:
    root = make_cache(tmp_path, [(70, 80), (20, 90)], regions=2, region_size=32, context=100)
    whole = {item.items[0]: item for item in iterate_items(make_cache(tmp_path / "whole", [(70, 80), (20, 90)]))}
    reader = CacheReader(root)
    assert len(reader.entries) == 4
    for entry in reader.entries:
        image = next(item for name, item in whole.items() if name[0] == entry.id[0])
        region, part = entry.region, reader.read(entry.id)
        assert region is not None
        rows, columns = slice(region.top, region.top + region.height), slice(region.left, region.left + region.width)
        assert torch.equal(part.lr_BCHW, image.lr_BCHW[..., rows, columns])
        large = (slice(4 * rows.start, 4 * rows.stop), slice(4 * columns.start, 4 * columns.stop))
        assert part.hr_BCHW is not None
        assert image.hr_BCHW is not None
        assert torch.equal(part.hr_BCHW, image.hr_BCHW[(..., *large)])
        # The context reaches the whole image here: the experts saw the same.
        assert torch.allclose(part.sr_BECHW, image.sr_BECHW[(..., *large)], atol=1.01 / 255)


def test_regions_do_not_overlap_and_depend_on_the_seed_only() -> None:
    source = Source("x", None, None, 300, 200)
    one, again, other = (
        [job.region for job in make_jobs([source], regions=3, region_size=64, seed=seed, dihedral=False)]
        for seed in (1, 1, 2)
    )
    assert one == again != other
    taken = np.zeros((300, 200), int)
    for region in one:
        taken[region.top : region.top + 64, region.left : region.left + 64] += 1
    assert taken.max() == 1
    assert taken.sum() == 3 * 64 * 64


def test_regions_fill_an_image_that_has_just_enough_room() -> None:
    for number in range(20):
        jobs = make_jobs([Source(str(number), None, None, 70, 70)], regions=2, region_size=32, seed=0, dihedral=False)
        assert len(jobs) == 2
    jobs = make_jobs([Source("x", None, None, 40, 40)], regions=3, region_size=32, seed=0, dihedral=False)
    assert len(jobs) == 1


def test_dihedral_variants_are_the_experts_answers_to_turned_inputs(tmp_path: Path) -> None:
    root = make_cache(tmp_path, [(16, 24)], dihedral=True, profile="lossless")
    reader = CacheReader(root)
    assert sorted(entry.dihedral for entry in reader.entries) == list(range(8))
    nets = experts(tmp_path / "weights")
    base = reader.read(next(entry.id for entry in reader.entries if entry.dihedral == 0))
    for entry in reader.entries:
        item = reader.read(entry.id)
        turned = base.lr_BCHW.flip(-1) if entry.dihedral >= 4 else base.lr_BCHW
        turned = torch.rot90(turned, entry.dihedral % 4, (-2, -1))
        assert torch.equal(item.lr_BCHW, turned)
        for number, expert in enumerate(nets):
            output = expert.run(turned)
            assert output.feat_BCHW is not None
            assert torch.allclose(item.sr_BECHW[:, number], output.sr_BCHW, atol=1e-5)
            assert torch.allclose(item.feats[expert.name], output.feat_BCHW, atol=1e-3)


def test_a_run_that_cannot_fit_is_refused_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_tools.write.space.free_bytes", lambda folder: 1000)
    with pytest.raises(Refusal, match="are needed, 1.0 kB are free"):
        make_cache(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_images_of_the_benchmark_pair(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "bench" / "Set5"
    sources, failures = find_sources(folder / "HR", folder / "LRx4")
    assert len(sources) == 5
    assert not failures


def out_of_cpu_memory(*_: object) -> None:
    torch.empty(1 << 55, dtype=torch.float64)  # torch's own RuntimeError, in its own words


def out_of_python_memory(*_: object) -> None:
    bytearray(1 << 62)  # Python's own MemoryError


@pytest.mark.parametrize("allocate", [out_of_cpu_memory, out_of_python_memory])
def test_out_of_memory_is_a_failure_with_a_cure(tmp_path: Path, allocate: Callable[..., None]) -> None:
    """Whatever inference takes for lack of memory, not CUDA's error alone: the item is listed, the run goes on."""
    (expert,) = experts(tmp_path / "weights", seeds=(0,))
    assert isinstance(expert, NetworkExpert)
    expert.network.register_forward_pre_hook(allocate)
    report = extract(ExtractSettings(out=tmp_path / "c", hr=write_images(tmp_path / "hr"), batch=2), [expert])
    assert not report.made
    assert len(report.failures) == 3
    assert all("memory; use --tile 128" in failure.reason for failure in report.failures)


def test_images_without_room_for_the_regions_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One image smaller than a region, one with room for one, one with room for both."""
    hr = write_images(tmp_path / "hr", [(20, 24), (32, 40), (32, 72)])
    words = ["--regions", 2, "--region-size", 32, "--hr", hr, "--dihedral"]
    words += ["--experts", ",".join(weights_files(tmp_path)), "--out", tmp_path / "cache"]
    said = "2 of 3 images have fewer than 2 regions: they have no room for more of 32x32 LR pixels (1 are cached whole)"
    code, plan = command_json(capsys, "plan", "--no-timing", *words)
    assert code == 0 and said in plan["too_few_regions"]
    assert command("plan", "--no-timing", *words) == 0
    assert said in capsys.readouterr().out
    assert command("extract", *words) == 0
    assert said in caplog.text
    assert command("info", tmp_path / "cache") == 0
    assert said in capsys.readouterr().out
    next((tmp_path / "cache").glob("items/*/*.h5")).unlink()  # unfinished: what is missing may still come
    assert command_json(capsys, "info", tmp_path / "cache")[1]["too_few_regions"] is None
    assert command_json(capsys, "info", make_cache(tmp_path / "whole"))[1]["too_few_regions"] is None
