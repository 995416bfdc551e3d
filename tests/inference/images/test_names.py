"""Names of any bytes: no UTF-8, newlines, a leading dash, markup, 255 bytes long; through every command and record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from cache_tools.__main__ import main as cache_tools
from experts.__main__ import main as experts
from fusion.evaluation import evaluate
from fusion.inference.command import Request, carry_out
from fusion.inference.jobs import make_jobs, measure_jobs
from fusion.inference.options import Options
from fusion.inference.report import submission
from fusion.inference.report.provenance import read_record, record_path
from imaging.__main__ import main as imaging
from imaging.atomic import temporary_path
from imaging.command import DONE, run
from imaging.names import fitting, printable, valid_text
from imaging.refusal import Refusal
from imaging.settings import Settings, load_settings
from tests.inference.parts import enlarge, ensemble_of, photo, weights_file

NO_UTF8 = b"a\xff\xfe.png"
PLAIN = [b"-dash.png", b"<b>&amp;.png", b"new\nline.png", b"'\"$(x)`.png", b"two  spaces .png", "\u202e.png".encode()]
LONG = [b"x" * 251 + b".png", ("é" * 125).encode() + b".png"]
NAMES = [*PLAIN, *LONG, b"escape\x1b[31m.png", NO_UTF8]


def names_of(folder: Path) -> set[bytes]:
    return {os.fsencode(path.name) for path in folder.iterdir() if path.suffix == ".png"}


def save(folder: Path, side: int, names: list[bytes]) -> Path:
    folder.mkdir()
    for index, name in enumerate(names):
        with (folder / os.fsdecode(name)).open("wb") as stream:
            Image.fromarray(photo(side, side, seed=index)).save(stream, "PNG")
    return folder


@pytest.fixture
def lr(tmp_path: Path) -> Path:
    return save(tmp_path / "lr", 12, NAMES)


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    return save(tmp_path / "hr", 48, NAMES)


def test_inference_report_json_and_records(
    tmp_path: Path, lr: Path, hr: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    ensemble = ensemble_of(repeat=enlarge, other=lambda lr_BCHW: enlarge(lr_BCHW) + 0.01)
    request = Request(lr, out, Options(tile=16), report=True, hr=hr, as_json=True)
    assert carry_out(request, ensemble) == DONE
    written = json.loads(capfd.readouterr().out)["written"]
    assert {os.fsencode(Path(path).name) for path in written} == set(NAMES) == names_of(out)
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "a\\xff\\xfe" in report and "&lt;b&gt;&amp;amp;" in report and "<b>&amp;" not in report
    for path in map(Path, written):
        record = read_record(path)
        assert record is not None and record["claim"]["experts"]
        assert carry_out(Request(lr / path.name, None, Options(tile=16), verify=path), ensemble) == DONE
    assert carry_out(Request(lr, out, Options(tile=16, skip_existing=True), as_json=True), ensemble) == DONE
    assert len(json.loads(capfd.readouterr().out)["skipped"]) == len(NAMES)


def test_a_submission_packs_all_names_that_a_zip_can_carry(tmp_path: Path) -> None:
    lr, out = save(tmp_path / "lr", 12, [*PLAIN, *LONG]), tmp_path / "out"
    assert carry_out(Request(lr, out, Options(tile=16), submission=True), ensemble_of()) == DONE
    with ZipFile(out / "submission.zip") as archive:
        assert {name.encode() for name in archive.namelist()} == {*PLAIN, *LONG, b"readme.txt"}
    assert submission.main([str(out), "-i", str(lr), "-o", str(tmp_path / "again.zip")]) == DONE


def test_a_name_that_no_zip_carries_is_refused_before_the_work(tmp_path: Path, lr: Path) -> None:
    request = Request(lr, tmp_path / "out", Options(tile=16), submission=True)
    with pytest.raises(Refusal, match="a zip cannot carry"):
        carry_out(request, ensemble_of())
    assert not names_of(tmp_path / "out")


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_commands_on_folders(
    tmp_path: Path, lr: Path, hr: Path, as_json: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    def good(command: object, *words: object) -> None:
        assert callable(command)
        assert run(command, [*map(str, words), *as_json]) == DONE, words

    weights = weights_file(tmp_path / "w")
    good(imaging, "downscale", hr, tmp_path / "small")
    good(imaging, "compare", "--lr", lr, "--sr", hr, "--hr", hr, "--out", tmp_path / "picture.png")
    good(evaluate.main, "--sr", hr, "--hr", hr)
    good(experts, "run", weights, "-i", lr, "-o", tmp_path / "sr")
    cache = tmp_path / os.fsdecode(b"cache\xff")
    good(cache_tools, "plan", "--experts", weights, "--hr", hr, "--out", cache)
    good(cache_tools, "extract", "--experts", weights, "--hr", hr, "--lr", lr, "--out", cache)
    good(cache_tools, "verify", cache, "--full")
    good(cache_tools, "info", cache)
    assert names_of(tmp_path / "small") == names_of(tmp_path / "sr") == set(NAMES)
    assert "\x1b" not in capfd.readouterr().err


def test_an_images_folder_is_an_expert_by_such_names(tmp_path: Path, lr: Path, hr: Path) -> None:
    assert cache_tools(["extract", "--experts", f"images:{hr}", "--lr", str(lr), "--out", str(tmp_path / "c")]) == DONE


def test_a_refusal_stays_one_line_and_moves_no_cursor() -> None:
    refusal = Refusal("bad\x1b[2J", where=Path("a\nb\x1b]0;title\x07  c.png"), cure="fix\n it")
    assert str(refusal) == "a\\nb\\x1b]0;title\\x07  c.png: bad\\x1b[2J; fix it"
    assert refusal.where.isprintable()


def test_an_output_name_that_becomes_too_long_is_listed(tmp_path: Path, lr: Path) -> None:
    sized, refused = measure_jobs(make_jobs(lr, tmp_path / "out", ext="webp"))
    assert {os.fsencode(job.input.name) for job, _ in refused} == {LONG[0]}
    assert "256 bytes" in str(refused[0][1]) and len(sized) == len(NAMES) - 1


def test_names_are_shortened_without_being_confused(tmp_path: Path) -> None:
    one, other = "x" * 250 + "a.png", "x" * 250 + "b.png"
    for path in (tmp_path / one, tmp_path / os.fsdecode(LONG[1])):
        assert len(os.fsencode(record_path(path).name)) <= 255 and record_path(path).suffix == ".json"
        assert len(os.fsencode(temporary_path(path).name)) <= 255
    assert record_path(tmp_path / one) != record_path(tmp_path / other)
    assert fitting(".", "short.png", ".end") == ".short.png.end"


@pytest.mark.parametrize(
    ("name", "valid", "shown"),
    [
        ("a\udcff", "a\\xff", "a\\xff"),
        ("\ud800", "\\ud800", "\\ud800"),
        ("é\n", "é\n", "é\\n"),
        ("日本", "日本", "日本"),
    ],
)
def test_every_name_has_a_text(name: str, valid: str, shown: str) -> None:
    assert (valid_text(name), printable(name)) == (valid, shown)


def test_a_setting_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("")
    with pytest.raises(Refusal, match=r"x=\\xff' is not valid UTF-8"):
        load_settings(Settings, tmp_path / "c.yaml", ["x=\udcff"])


def test_enlarged_pixels_do_not_depend_on_the_name(tmp_path: Path, lr: Path) -> None:
    carry_out(Request(lr, tmp_path / "out", Options(tile=16)), ensemble_of())
    for name in NAMES:
        source = photo(12, 12, seed=NAMES.index(name)).repeat(4, 0).repeat(4, 1)
        with (tmp_path / "out" / os.fsdecode(name)).open("rb") as stream:
            assert np.array_equal(np.asarray(Image.open(stream)), source)
