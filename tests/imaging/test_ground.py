"""The habits every room shares: refusals, atomic files, strict settings, exit codes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imaging import atomic
from imaging.command import DONE, INTERRUPTED, REFUSED, goes_on_by, print_json, run
from imaging.device import warn_of_slow_bf16
from imaging.refusal import Refusal, nearest
from imaging.settings import Settings, load_settings, parse_settings, read_yaml


class Inner(Settings):
    rate: float = 0.1
    steps: int = 10


class Stage(Settings):
    name: str
    weight: float = 1.0


class Outer(Settings):
    title: str = "x"
    inner: Inner = Inner()
    maybe: Inner | None = None
    stages: tuple[Stage, ...] = ()
    table: dict[str, Inner] = {}


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# refusal


@given(what=st.text(), where=st.text(), cure=st.text())
def test_a_refusal_is_one_line_and_survives_pickling(what: str, where: str, cure: str) -> None:
    refusal = Refusal(what, where=where, cure=cure)
    assert len(str(refusal).splitlines()) <= 1
    again = pickle.loads(pickle.dumps(refusal))
    assert (str(again), again.where) == (str(refusal), refusal.where)


def test_nearest_names_the_likely_one_or_all() -> None:
    assert nearest("learing_rate", ["learning_rate", "steps"]) == "did you mean 'learning_rate'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", []) == "there is none to choose from"


# settings


def test_values_and_overrides_arrive_typed(tmp_path: Path) -> None:
    path = write(tmp_path, "title: night\ninner: {steps: 5}\n")
    loaded = load_settings(Outer, path, ["inner.rate=2e-4", "title=day", "stages=[{name: one}]", "inner.steps=7"])
    assert loaded == Outer(title="day", inner=Inner(rate=2e-4, steps=7), stages=(Stage(name="one"),))
    with pytest.raises(Exception, match="frozen"):
        loaded.title = "other"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("titel: a", "titel", "title"),
        ("inner: {stesp: 3}", "inner.stesp", "inner.steps"),
        ("maybe: {rats: 3}", "maybe.rats", "maybe.rate"),
        ("stages: [{name: a}, {name: b, wieght: 2}]", "stages.1.wieght", "stages.1.weight"),
        ("table: {k: {stpes: 1}}", "table.k.stpes", "table.k.steps"),
    ],
)
def test_unknown_keys_are_refused_with_the_right_name(tmp_path: Path, text: str, place: str, hint: str) -> None:
    with pytest.raises(Refusal) as caught:
        load_settings(Outer, write(tmp_path, text))
    assert caught.value.what == f"unknown setting '{place}'"
    assert caught.value.cure == f"did you mean '{hint}'?"
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize("word", ["inner.stesp=3", "inner={stesp: 3}"])
def test_a_typing_error_of_the_command_line_is_not_blamed_on_the_file(tmp_path: Path, word: str) -> None:
    with pytest.raises(Refusal) as caught:
        load_settings(Outer, write(tmp_path, "title: a"), [word])
    refused = "command line: unknown setting 'inner.stesp'; did you mean 'inner.steps'?"
    assert str(caught.value) == refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("inner: {steps: many}", "setting 'inner.steps'"),
        ("- a\n- b", "is not a mapping"),
        ("a: [1", "is not YAML"),
        ("just words", "is not a mapping"),
        ("a: !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(Refusal, match=reason.replace("(", r"\(")):
        load_settings(Outer, write(tmp_path, text))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no such file"):
        load_settings(Outer, tmp_path / "absent.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(Refusal, match="cannot be read"):
        load_settings(Outer, tmp_path / "b.yaml")
    with pytest.raises(Refusal, match="cannot be read"):
        load_settings(Outer, tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"a: \x01")
    with pytest.raises(Refusal, match="is not YAML"):
        load_settings(Outer, tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("title", "not an override"),
        ("=3", "not an override"),
        ("title.x=3", "is a value, not a section"),
        ("inner.rate=[1", "is not YAML"),
        ("inner..rate=3", "not an override"),
        (".rate=3", "not an override"),
        ("inner.=3", "not an override"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Path, word: str, reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as caught:
        load_settings(Outer, write(tmp_path, "title: a"), [word])
    assert caught.value.where == "command line"


def test_an_override_opens_a_section_that_the_file_leaves_empty(tmp_path: Path) -> None:
    assert load_settings(Outer, write(tmp_path, "inner:\n"), ["inner.steps=4"]).inner.steps == 4


def test_an_empty_file_means_all_defaults(tmp_path: Path) -> None:
    assert load_settings(Outer, write(tmp_path, "# nothing\n")) == Outer()


def test_a_missing_required_value_is_named() -> None:
    with pytest.raises(Refusal, match=r"setting 'stages\.0\.name'"):
        parse_settings(Outer, {"stages": [{"weight": 1}]}, where="here")


# atomic


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    atomic.write_text(target, "old")
    with atomic.atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.name.startswith(".")
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a", b"old")

    def interrupted() -> None:
        with atomic.atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_dead_temporaries_go_and_living_or_foreign_ones_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = atomic.temporary_path(tmp_path / "deep" / "x.tmp.png")
    own.parent.mkdir()
    stem = own.name.rsplit(".", 1)[0]
    host = stem.rsplit(".", 1)[1]
    kept = [own, own.with_name(f"{stem}.notapid"), own.with_name(own.name.replace(f".{host}.", ".elsewhere."))]
    kept += [own.with_name(f"{stem}.{10**30}"), own.with_name("x.tmp.png"), own.with_name(f".x.tmp.{host}.1")]
    dead = own.with_name(f"{stem}.{ended.pid}")
    for path in [*kept, dead]:
        path.write_text("")
    assert atomic.remove_dead_temporaries(tmp_path) == [dead]
    assert sorted(own.parent.iterdir()) == sorted(kept)
    assert own.name.endswith(str(os.getpid()))


# command


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: object) -> int:
        raise Refusal("is\nwrong", where="a.png", cure="mend it")

    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    assert run(lambda words: len(words), ["a"]) == 1
    assert run(lambda words: DONE, []) == DONE
    assert run(refuse, []) == REFUSED
    assert capsys.readouterr().err == "refused: a.png: is wrong; mend it\n"
    assert run(interrupt, []) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted: no half-written file is left\n"
    assert run(goes_on_by("--more")(interrupt), []) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted: --more goes on from what was finished\n"


def test_json_is_one_document_without_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": Path("a"), "x": 1.5})
    assert json.loads(capsys.readouterr().out) == {"path": "a", "x": 1.5}
    with pytest.raises(ValueError, match="Out of range"):
        print_json({"x": float("nan")})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "text",
    ["x: 2026-99-99", f"x: {'9' * 5000}", f"x: {'[' * 3000}", "x: !!binary x", "x: !!int y", "x: !!timestamp z"],
)
def test_values_that_yaml_readers_choke_on_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(Refusal, match="is not YAML") as caught:
        read_yaml(tmp_path / "c.yaml")
    assert len(str(caught.value)) < 500
    with pytest.raises(Refusal, match="is not YAML"):
        load_settings(Settings, _empty(tmp_path), [text.replace(": ", "=", 1)])


def _empty(folder: Path) -> Path:
    (folder / "empty.yaml").write_text("")
    return folder / "empty.yaml"


def test_aliases_that_unfold_without_an_end_are_refused(tmp_path: Path) -> None:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]" for m, n in zip("abcdefg", "bcdefgh", strict=True)]
    for text in ("\n".join(lines), "x: &x [*x]"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(Refusal, match="unfolds to more"):
            read_yaml(tmp_path / "c.yaml")


# devices


def flags() -> set[str]:
    """Of this processor, as the kernel lists them, not as torch does."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    return {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split()}


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell what the CPU can")
def test_bf16_without_instructions_for_it_is_said_to_be_slow(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_slow_bf16(torch.device("cpu"), "fp32", "precision")
    assert not caplog.records
    warn_of_slow_bf16(torch.device("cpu"), "bf16", "precision=bf16")
    is_slow = bool(flags()) and not flags() & {"avx512_bf16", "amx_bf16"}
    assert [record.getMessage()[:14] for record in caplog.records] == ["precision=bf16"] * is_slow
