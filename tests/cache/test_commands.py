"""`python -m cache_tools ...` as people and schedulers use it: answers, JSON, exit codes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cache_tools.format.schema import PROFILES
from cache_tools.read.reader import CacheReader, iterate_items
from imaging.files import read_rgb, write_picture
from imaging.metrics import psnr
from tests.cache.parts import command, command_json, item_bytes_of, make_cache, weights_files, write_images

if TYPE_CHECKING:
    Capture = pytest.CaptureFixture[str]


def extract_words(folder: Path, out: str, seeds: tuple[int, ...] = (0, 1)) -> list[object]:
    files = weights_files(folder / "weights", seeds)
    return ["extract", "--hr", folder / "hr", "--experts", ",".join(files), "--device", "cpu", "--out", folder / out]


def test_plan_forecasts_what_extract_makes(tmp_path: Path, capsys: Capture) -> None:
    write_images(tmp_path / "hr")
    words = extract_words(tmp_path, "c")
    code, plan = command_json(capsys, "plan", *words[1:])
    assert code == 0
    assert not (tmp_path / "c").exists()
    assert (plan["images"], plan["files"]) == (3, 3)
    assert plan["lr_pixels"] == 40 * 48 + 33 * 70 + 64 * 64
    assert plan["seconds"] > 0
    for profile in PROFILES:
        target = tmp_path / profile
        assert command(*words[:-1], target, "--profile", profile) == 0
        real = sum(path.stat().st_size for path in target.glob("items/*/*"))
        assert abs(plan["bytes"][profile] - real) < 0.01 * real + 3000
    capsys.readouterr()
    assert command("plan", *words[1:], "--regions", "2", "--region-size", "16", "--dihedral", "--no-timing") == 0
    assert "3 images -> 48 items" in capsys.readouterr().out


def test_extract_reports_and_resumes(tmp_path: Path, capsys: Capture) -> None:
    write_images(tmp_path / "hr")
    words = extract_words(tmp_path, "c")
    code, report = command_json(capsys, *words)
    assert (code, len(report["made"]), report["kept"], report["failures"]) == (0, 3, [], [])
    code, report = command_json(capsys, *words)
    assert (code, report["made"], len(report["kept"])) == (0, [], 3)
    before = item_bytes_of(tmp_path / "c")
    assert command(*words[:-1], tmp_path / "s", "--sequential") == 0
    assert item_bytes_of(tmp_path / "s") == before
    assert command(*words, "--profile", "half") == 2
    assert "holds another cache: profile is compact, requested half" in capsys.readouterr().err


def test_info_says_what_is_inside_and_scores_the_experts(tmp_path: Path, capsys: Capture) -> None:
    root = make_cache(tmp_path)
    code, info = command_json(capsys, "info", root)
    assert code == 0
    assert (info["items"], info["planned"], info["images"], info["features"]) == (3, 3, 3, 14)
    assert info["bytes"] == sum(path.stat().st_size for path in root.glob("items/*/*"))
    items = list(iterate_items(root))
    for number, name in enumerate(("e0", "e1")):
        scores = [float(psnr(item.sr_BECHW[:, number], item.hr_BCHW)) for item in items if item.hr_BCHW is not None]
        assert info["psnr_y"][name] == pytest.approx(sum(scores) / 3, abs=1e-3)
    assert command("info", root, "--score", "0") == 0
    assert "weights" in capsys.readouterr().out
    assert command("info", tmp_path) == 2


def test_merge_unites_shards(tmp_path: Path, capsys: Capture) -> None:
    whole = make_cache(tmp_path)
    words = extract_words(tmp_path, "part")
    for part in range(2):
        assert command(*words[:-1], tmp_path / f"part{part}", "--shard", f"{part}/2") == 0
    code, done = command_json(capsys, "merge", tmp_path / "part0", tmp_path / "part1", "--out", tmp_path / "all")
    assert (code, done["way"], done["made"]) == (0, "shards united", 3)
    assert item_bytes_of(tmp_path / "all") == item_bytes_of(whole)
    assert command("verify", tmp_path / "all", "--full") == 0
    code, done = command_json(capsys, "merge", tmp_path / "part0", tmp_path / "part1", "--out", tmp_path / "all")
    assert (code, done["made"], done["kept"]) == (0, 0, 3)


def test_merge_joins_experts_over_the_same_images(tmp_path: Path, capsys: Capture) -> None:
    whole = make_cache(tmp_path)
    for seed in (0, 1):
        assert command(*extract_words(tmp_path, f"e{seed}", (seed,))) == 0
    code, done = command_json(capsys, "merge", tmp_path / "e0", tmp_path / "e1", "--out", tmp_path / "both")
    assert (code, done["way"]) == (0, "experts joined")
    assert item_bytes_of(tmp_path / "both") == item_bytes_of(whole)


def test_merge_joins_a_folder_of_images_to_networks(tmp_path: Path) -> None:
    whole = make_cache(tmp_path)
    assert command("import-images", "--hr", tmp_path / "hr", "--out", tmp_path / "i", f"truth={tmp_path / 'hr'}") == 0
    assert command("merge", whole, tmp_path / "i", "--out", tmp_path / "all") == 0
    for item, before in zip(iterate_items(tmp_path / "all"), iterate_items(whole), strict=True):
        assert item.experts == ("e0", "e1", "truth")
        assert item.hr_BCHW is not None
        assert torch.equal(item.sr_BECHW[:, 2], item.hr_BCHW)
        assert all(torch.equal(item.feats[name], before.feats[name]) for name in ("e0", "e1"))
        assert "truth" not in item.feats


def test_merge_refuses_what_does_not_fit(tmp_path: Path, capsys: Capture) -> None:
    root = make_cache(tmp_path)
    half = make_cache(tmp_path / "half", profile="half")
    assert command("merge", root, half, "--out", tmp_path / "x") == 2
    assert "profile" in capsys.readouterr().err
    assert command("merge", root, root, "--out", tmp_path / "x") == 2
    assert command(*extract_words(tmp_path, "e2", (2,))) == 0
    next((tmp_path / "e2").glob("items/*/a-*")).unlink()
    assert command("merge", root, tmp_path / "e2", "--out", tmp_path / "x") == 2
    assert "lacks 1 item(s)" in capsys.readouterr().err
    write_picture(tmp_path / "hr" / "a.png", torch.rand(1, 3, 160, 192))
    assert command(*extract_words(tmp_path, "e2", (2,))) == 0
    assert command("merge", root, tmp_path / "e2", "--out", tmp_path / "x") == 2
    assert "image is not that of" in capsys.readouterr().err
    assert not list((tmp_path / "x").glob("items/*/a-*"))


def test_repack_equals_extracting_so(tmp_path: Path) -> None:
    lossless = make_cache(tmp_path, profile="lossless")
    for profile in ("half", "compact", "images"):
        assert command("repack", lossless, "--out", tmp_path / profile, "--profile", profile) == 0
        direct = tmp_path / f"direct-{profile}"
        assert command(*extract_words(tmp_path, direct.name), "--profile", profile) == 0
        assert item_bytes_of(tmp_path / profile) == item_bytes_of(direct)
    assert command("repack", tmp_path / "compact", "--out", tmp_path / "one", "--experts", "e1") == 0
    assert command(*extract_words(tmp_path, "direct-one", (1,))) == 0
    assert item_bytes_of(tmp_path / "one") == item_bytes_of(tmp_path / "direct-one")


def test_repack_packs_and_never_promises_more(tmp_path: Path, capsys: Capture) -> None:
    root = make_cache(tmp_path)
    assert command("repack", root, "--out", tmp_path / "gz", "--compress", "gzip") == 0
    for one, other in zip(iterate_items(root), iterate_items(tmp_path / "gz"), strict=True):
        assert torch.equal(one.sr_BECHW, other.sr_BECHW)
        assert all(torch.equal(one.feats[name], other.feats[name]) for name in one.feats)
    assert command("repack", root, "--out", tmp_path / "x", "--profile", "lossless") == 2
    assert "cannot be restored" in capsys.readouterr().err
    assert command("repack", root, "--out", root) == 2
    assert command("repack", root, "--out", tmp_path / "x", "--experts", "nobody") == 2


def test_import_images_takes_whole_images_and_regions(tmp_path: Path, capsys: Capture) -> None:
    hr = write_images(tmp_path / "hr", [(40, 48), (33, 70)])
    for path in sorted(hr.iterdir()):
        write_picture(tmp_path / "model" / f"{path.stem}x4.png", read_rgb(path).flip(1))
    words = ["import-images", "--hr", hr, f"swapped={tmp_path / 'model'}", f"truth={hr}", "--out"]
    assert command(*words, tmp_path / "c") == 0
    for item in iterate_items(tmp_path / "c"):
        assert item.experts == ("swapped", "truth")
        assert item.hr_BCHW is not None
        assert torch.equal(item.sr_BECHW[:, 0], item.hr_BCHW.flip(1))
    assert command(*words, tmp_path / "r", "--regions", "2", "--region-size", "16") == 0
    for item in iterate_items(tmp_path / "r"):
        assert item.hr_BCHW is not None
        assert torch.equal(item.sr_BECHW[:, 1], item.hr_BCHW)
    assert command(*words, tmp_path / "d", "--dihedral") == 1
    (tmp_path / "model" / "ax4.png").unlink()
    code, report = command_json(capsys, *words, tmp_path / "m")
    assert code == 1
    assert "nothing for item 'a'" in report["failures"][0]["reason"]
    assert len(report["made"]) == 1


def seed_file(path: Path, height: int = 20, width: int = 24, **changes: Any) -> dict[str, Any]:
    """A `.pt` file of the older layout."""
    torch.manual_seed(len(path.name))
    content: dict[str, Any] = {
        "lr": torch.rand(3, height, width),
        "hr": torch.rand(3, 4 * height, 4 * width),
        "expert_imgs": {name: torch.rand(3, 4 * height, 4 * width) for name in ("hat", "edsr")},
        "expert_feats": {name: torch.randn(c, height, width) for name, c in (("hat", 5), ("edsr", 7))},
    }
    content |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return content


def test_import_pt_keeps_every_number(tmp_path: Path) -> None:
    contents = [seed_file(tmp_path / "pt" / f"{name}.pt") for name in ("a", "bb")]
    assert command("import-pt", tmp_path / "pt", "--out", tmp_path / "c", "--profile", "lossless") == 0
    for content, item in zip(contents, iterate_items(tmp_path / "c"), strict=True):
        assert item.experts == ("hat", "edsr")
        assert item.hr_BCHW is not None
        for number, name in enumerate(item.experts):
            assert torch.equal(item.sr_BECHW[0, number], content["expert_imgs"][name])
            assert torch.equal(item.feats[name][0], content["expert_feats"][name])
        assert torch.allclose(item.lr_BCHW[0], content["lr"], atol=0.51 / 255)
        assert torch.allclose(item.hr_BCHW[0], content["hr"], atol=0.51 / 255)
    recipe = CacheReader(tmp_path / "c").recipe
    assert all("unknown" in expert.weights_sha256 for expert in recipe.experts)
    assert command("import-pt", tmp_path / "pt", "--out", tmp_path / "c", "--profile", "lossless") == 0
    assert command("import-pt", tmp_path / "pt", "--out", tmp_path / "c", "--profile", "half") == 2


class Evil:
    """What a hostile pickle would do on loading."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil-was-here",)


def test_import_pt_lists_bad_files_and_runs_no_code(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pt"
    seed_file(folder / "good.pt")
    seed_file(folder / "nan.pt", lr=torch.full((3, 20, 24), float("nan")))
    seed_file(folder / "large.pt", hr=torch.rand(3, 80, 96) * 255)
    seed_file(folder / "sizes.pt", hr=torch.rand(3, 80, 92))
    seed_file(folder / "others.pt", expert_imgs={"hat": torch.rand(3, 80, 96)})
    torch.save([1, 2], folder / "list.pt")
    (folder / "text.pt").write_text("no tensors")
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
    code, report = command_json(capsys, "import-pt", folder, "--out", tmp_path / "c")
    assert code == 1
    assert len(report["made"]) == 1
    assert {one["item"] for one in report["failures"]} == {
        f"{n}.pt" for n in ["nan", "large", "sizes", "others", "list", "text", "evil"]
    }
    assert not Path("evil-was-here").exists()
    assert command("import-pt", tmp_path / "c", "--out", tmp_path / "d") == 2


def test_mistakes_on_the_command_line_exit_with_2(tmp_path: Path) -> None:
    """In one line, and soon: commands that run no expert do not wait for forty architectures to be imported."""
    code = (
        "import sys; from cache_tools.__main__ import main; from imaging.command import run;"
        "code = run(main); assert 'spandrel' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "info", str(tmp_path / "nothing"), "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("refused: ")
    assert command("extract", "--profile", "tiny") == 2
