"""A run's settings -> its folder: resolved config, origin, checkpoints, best weights, log, summary."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from fusion.training.settings import TrainSettings
from imaging.atomic import write_text
from imaging.paths import IN_CHECKOUT, ROOT
from imaging.refusal import Refusal
from imaging.settings import parse_settings, read_yaml

# Settings that change no number of the result, and may therefore differ when a run is resumed.
FREE_TO_CHANGE = ("log", "checkpoint", "device")
FREE_IN_DATA = ("workers", "hr", "cache", "catalog")


@dataclass(frozen=True)
class RunFolder:
    """The places within one run's folder."""

    root: Path
    prolonged: bool = False  # more steps are wanted than when it began

    @property
    def checkpoints(self) -> Path:
        """Full training states."""
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        """The best averaged weights."""
        return self.root / "best"

    @property
    def logs(self) -> Path:
        """Scalars and images."""
        return self.root / "log"

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.root / "config.yaml"

    @property
    def origin(self) -> Path:
        """Git state, versions, command line, data fingerprint."""
        return self.root / "origin.json"

    @property
    def summary(self) -> Path:
        """Scores and decisions, written at the end."""
        return self.root / "summary.json"

    def record_prolonged(self, settings: TrainSettings, step: int) -> None:
        """In the origin, from which it comes into the model's header; then in the config, which makes it so."""
        document = json.loads(self.origin.read_text(encoding="utf-8"))
        document["prolonged"] = [*document.get("prolonged", []), {"after": step, "to": settings.steps}]
        write_text(self.origin, json.dumps(document, indent=2) + "\n")
        write_text(self.config, to_yaml(settings))


def to_yaml(settings: TrainSettings) -> str:
    """The settings with every default spelled out."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def open_run(settings: TrainSettings, fingerprint: str, *, resume: bool) -> RunFolder:
    """Make the folder, or check that the existing one is of the same run."""
    folder = RunFolder(settings.run)
    if folder.config.exists():
        if not resume:
            raise Refusal(
                "this run has begun already", where=settings.run, cure="add --resume auto, or give another run="
            )
        return replace(folder, prolonged=_check_same_run(settings, fingerprint, folder))
    write_text(folder.origin, json.dumps(origin(fingerprint), indent=2) + "\n")
    write_text(folder.config, to_yaml(settings))
    return folder


def _check_same_run(settings: TrainSettings, fingerprint: str, folder: RunFolder) -> bool:
    """Refuse another run; whether this one is prolonged."""
    # Read through the types, so that a setting that is new since then has its default on both sides.
    before = parse_settings(TrainSettings, read_yaml(folder.config), where=str(folder.config)).model_dump(mode="json")
    now = settings.model_dump(mode="json")
    for name in (key for key in now if key not in FREE_TO_CHANGE):
        old, new = before[name], now[name]
        if name == "data":
            old, new = ({key: one[key] for key in one if key not in FREE_IN_DATA} for one in (old, new))
        if name == "steps" and settings.steps > before["steps"]:
            continue
        if old != new:
            raise Refusal(
                f"'{name}' was {old} when the run began and is {new} now",
                where=folder.config,
                cure="resume with the settings it began with (more steps are possible), or give another run=",
            )
    known = json.loads(folder.origin.read_text(encoding="utf-8"))["fingerprint"]
    if known != fingerprint:
        raise Refusal(
            "the training data has changed since the run began", where=folder.origin, cure="give another run="
        )
    return settings.steps > before["steps"]


def origin(fingerprint: str) -> dict[str, Any]:
    """What the result depends on beside the settings."""
    return {
        "fingerprint": fingerprint,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git_state(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def git_state() -> dict[str, Any]:
    """Commit and whether files differ from it; None where there is no git or no commit."""
    if not IN_CHECKOUT:  # git would tell of whatever repository the environment happens to lie in
        return {"commit": None, "dirty": None}

    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)  # noqa: S607
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    status = ask("status", "--porcelain")
    return {"commit": ask("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
