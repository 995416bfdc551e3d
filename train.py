"""A config and a source of images or cached experts -> a trained model in its run folder. The rooms meet here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experts.edsr import EDSR
from experts.native.freqnet import FreqNet
from experts.native.msg import MSG
from experts.native.ssm import SSM
from experts.open import open_experts
from fusion.network.settings import ExpertSlot
from fusion.training.cache_source import CacheSource
from fusion.training.expert_task import ExpertTask
from fusion.training.fusion_task import FusionTask
from fusion.training.live_source import LiveSource
from fusion.training.loop import train
from fusion.training.networks import NetworkKind
from fusion.training.run_folder import to_yaml
from fusion.training.settings import TrainSettings
from imaging.command import DONE, print_json, run
from imaging.refusal import Refusal
from imaging.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion.training.task import Task

NETWORKS = {
    "edsr": NetworkKind("EDSR", EDSR),
    "msg": NetworkKind("MSG", MSG),
    "freqnet": NetworkKind("FreqNet", FreqNet),
    "ssm": NetworkKind("SSM", SSM),
}


def main(arguments: Sequence[str]) -> int:
    """Parse, build, call."""
    words = _parser().parse_args(arguments)
    overrides = list(words.overrides)
    if words.cache is not None:
        overrides.append(f"data.cache={words.cache}")
    settings = load_settings(TrainSettings, words.config, overrides)
    if words.print_config:
        sys.stdout.write(to_yaml(settings))
        return DONE
    if words.live and settings.data.cache is not None:
        raise Refusal("--live and a cache exclude each other", where="command line", cure="give one of them")

    def build(rank: int, world: int) -> Task:
        return make_task(settings, words.live, rank, world)

    summary = train(settings, build, resume=words.resume == "auto")
    if words.json and summary:
        print_json(summary)
    return DONE


def make_task(settings: TrainSettings, live: bool, rank: int, world: int) -> Task:
    """The task that the settings name, on the source that the command line names."""
    if settings.task == "expert":
        return ExpertTask(settings, NETWORKS, rank, world)
    if live:
        return FusionTask(settings, live_source(settings, rank, world))
    return FusionTask(settings, CacheSource(settings, rank, world))


def live_source(settings: TrainSettings, rank: int, world: int) -> LiveSource:
    """Experts that run as we train."""
    if not settings.data.experts:
        raise Refusal("no experts are named", where="data.experts", cure="give data.experts=[NAME,...] with --live")
    device = "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    experts = open_experts(settings.data.experts, device=device)
    features = settings.network.settings.get("features", "taps") != "none"

    def ask(lr_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = {expert.name: expert.run(lr_BCHW.to(device)) for expert in experts}
        feats = {name: out.feat_BCHW for name, out in outputs.items() if features and out.feat_BCHW is not None}
        return torch.stack([out.sr_BCHW for out in outputs.values()], dim=1), feats

    slots = tuple(
        ExpertSlot(
            name=expert.name,
            channels=expert.identity.channels if features else 0,
            sha256=expert.identity.weights_sha256,
        )
        for expert in experts
    )
    return LiveSource(settings, slots, ask, rank, world)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py", description="train an expert, or the fusion of experts")
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to change")
    parser.add_argument("--cache", type=Path, help="train fusion from this cache (data.cache)")
    parser.add_argument("--live", action="store_true", help="train fusion with data.experts running on data.hr")
    parser.add_argument("--resume", choices=["auto"], help="go on where this run was stopped, or begin it")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
