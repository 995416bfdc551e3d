"""The attack itself: what is silent, raises, hangs or dies is counted as such; mutations are the seed's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imaging.refusal import Refusal
from tests.attack.mutate import bits_and_damage, in_json, in_yaml
from tests.attack.run import DETECTED, HARMLESS, OTHER, QUIET, TRACEBACK, outcome_of
from tests.attack.targets import TARGETS, Original, Target

PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "careless": (lambda path: path.read_bytes(), QUIET),
    "blind": (lambda _path: b"sound", HARMLESS),
    "careful": (lambda path: _refuse(path), DETECTED),
    "clumsy": (lambda path: int(path.read_bytes()), TRACEBACK),
    "wordy": (lambda path: _refuse_in_two_lines(path), TRACEBACK),
}


def _refuse(path: Path) -> object:
    raise Refusal("is damaged", where=path, cure="copy it again")


def _refuse_in_two_lines(path: Path) -> object:
    refusal = Refusal("is damaged", where=path, cure="copy it again")
    refusal.args = ("one\ntwo",)
    raise refusal


@pytest.mark.parametrize("reader", sorted(PLANTED))
def test_each_outcome_is_told_from_the_others(tmp_path: Path, reader: str) -> None:
    read, expected = PLANTED[reader]
    path = tmp_path / "a"
    path.write_bytes(b"changed")
    target = Target("planted", 1, lambda folder: [folder / "a"], read, bits_and_damage)
    original = Original(path, b"sound", repr(b"sound"))
    assert outcome_of(target, original)[0] == expected
    if expected == QUIET:  # where nothing could tell, it is another sound file
        assert outcome_of(replace(target, checked=lambda _path: False), original)[0] == OTHER


def test_shares_make_a_whole() -> None:
    assert sum(target.share for target in TARGETS) + 60 == 1000
    assert len({target.name for target in TARGETS}) == len(TARGETS)


def test_mutations_are_the_seeds(tmp_path: Path) -> None:
    for mutate, data in (
        (bits_and_damage, bytes(range(200))),
        (in_json, b'{"a": [1, {"b": 2.5}]}'),
        (in_yaml, b"a: 1\nb: x"),
    ):
        made = [mutate(data, random.Random(seed)) for seed in range(40)]
        assert made == [mutate(data, random.Random(seed)) for seed in range(40)]
        assert len(set(made)) > 20


@pytest.mark.parametrize("name", ["configs and catalogs", "budget, base, manifest"])
def test_a_few_of_a_class_in_this_process(tmp_path: Path, name: str) -> None:
    """The whole attack is `make attack`; this keeps it able to run."""
    (target,) = (one for one in TARGETS if one.name == name)
    originals = target.originals(tmp_path)
    for number in range(60):
        original = originals[number % len(originals)]
        original.path.write_bytes(target.mutate(original.data, random.Random(number)))
        assert outcome_of(target, original)[0] in (DETECTED, HARMLESS, OTHER)
        original.path.write_bytes(original.data)
