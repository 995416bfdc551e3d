"""A config and a source of images or cached experts -> a trained model in its run folder. The rooms meet here."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cache_tools.format.location import is_address, parse_location
from cache_tools.storage.item_cache import add_local_cache_arguments, set_local_cache
from experts.catalog import load_catalog
from experts.check import seconds_per_pixel
from experts.loading.student import build_architecture, open_student
from experts.native.edsr import EDSR
from experts.native.freqnet import FreqNet
from experts.native.msg import MSG
from experts.native.ssm import SSM
from experts.open import open_experts
from experts.spec import scale_of
from experts.stored import StoredExperts, stored_specs
from fusion.budget.fit import fit_after_training
from fusion.network.base.blend import BaseRecord
from fusion.network.settings import ExpertSlot
from fusion.training.dry_run import measure_pace, probe
from fusion.training.loop.loop import train
from fusion.training.loop.run_folder import to_yaml
from fusion.training.settings import TrainSettings
from fusion.training.sources.cache import CacheSource, at_cache_scale
from fusion.training.sources.live import LiveSource
from fusion.training.tasks.distil import DistilTask, Rival, Student
from fusion.training.tasks.expert import ExpertTask
from fusion.training.tasks.fusion import FusionTask
from fusion.training.tasks.networks import NetworkKind, build_network, initial_weights_seed
from fusion.training.tasks.refiner import RefinerTask
from imaging.command import DONE, REFUSED, CommandParser, goes_on_by, print_json, run
from imaging.device import best_device
from imaging.paths import find_shipped
from imaging.refusal import Refusal
from imaging.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion.training.sources.batch import FusionSource
    from fusion.training.tasks.task import Task

FROM_FILE = "file"  # the network of the weights file, or the expert, that network.settings.file names
NETWORKS = {
    "edsr": NetworkKind("EDSR", EDSR, scale_setting="upscale"),
    "msg": NetworkKind("MSG", MSG),
    "freqnet": NetworkKind("FreqNet", FreqNet),
    "ssm": NetworkKind("SSM", SSM),
}


@goes_on_by("--resume auto", "the last checkpoint, if there is one")
def main(arguments: Sequence[str]) -> int:
    """Parse, build, call."""
    words = _parser().parse_args(arguments)
    set_local_cache(words)
    settings = load_settings(TrainSettings, find_shipped(words.config), _overrides(words))
    if words.print_config:
        sys.stdout.write(to_yaml(settings))
        return DONE
    if words.pace is not None:
        return _pace(settings, words)
    if words.live and settings.data.cache is not None:
        raise Refusal("--live and a cache exclude each other", where="command line", cure="give one of them")
    settings = at_cache_scale(settings)

    def build(rank: int, world: int) -> Task:
        return make_task(settings, words.live, rank, world, trust_code=words.trust_code)

    if words.probe is not None:
        print_json(asdict(probe(settings, build, words.probe)))
        return DONE
    if words.fit_budget is not None:
        return DONE if fit_budget_model(settings, words.fit_budget, trust_code=words.trust_code) else REFUSED
    summary = train(settings, build, resume=words.resume == "auto")
    if summary and settings.task == "fusion" and settings.fusion.budget and not words.live:
        model = settings.run / f"{settings.export.name}.safetensors"
        summary["budget_head"] = fit_budget_model(settings, model, trust_code=words.trust_code)
    if words.json and summary:
        print_json(summary)
    return DONE


def _overrides(words: argparse.Namespace) -> list[str]:
    """Options that stand for a setting, behind the settings that are given as such."""
    named = {"data.cache": words.cache, "data.catalog": words.catalog}
    return [*words.overrides, *(f"{key}={value}" for key, value in named.items() if value is not None)]


def _pace(settings: TrainSettings, words: argparse.Namespace) -> int:
    """Samples a second from the cache, and with --live beside it from experts that run."""
    if settings.task != "fusion" or settings.data.cache is None or len(words.pace) != 1 + words.live:
        cure = "give task: fusion, --cache DIR and --pace STEPS; with --live STEPS,LIVE"
        raise Refusal("cannot tell what to measure", where="--pace", cure=cure)
    settings = at_cache_scale(settings)
    cached = measure_pace(settings, lambda *place: _unfitted(settings, CacheSource(settings, *place)), words.pace[0], 3)
    document = {"cache": asdict(cached)}
    if words.live:
        live = settings.model_copy(update={"data": settings.data.model_copy(update={"cache": None})})
        found = measure_pace(
            live,
            lambda *place: _unfitted(live, live_source(live, *place, trust_code=words.trust_code)),
            words.pace[1],
            0,
        )
        cpu = [pace.cpu_seconds / pace.steps for pace in (cached, found)]
        document |= {"live": asdict(found), "ratio": cached.samples_per_second / found.samples_per_second}
        document["cpu_ratio"] = cpu[1] / cpu[0]
    print_json(document)
    return DONE


def _unfitted(settings: TrainSettings, source: FusionSource) -> FusionTask:
    """The plain mean as base: fitting one takes as long as many steps, and its cost in a step is the same."""
    return FusionTask(settings, source, BaseRecord.mean_of([slot.name for slot in source.slots]))


def fit_budget_model(settings: TrainSettings, model_file: Path, *, trust_code: bool = False) -> str | None:
    """Beside the model, what infer.py --budget plans by: gains from the cache, costs measured on the experts here."""
    source = CacheSource(settings)
    assert settings.data.cache is not None
    known = {slot.name: slot.sha256 for slot in source.slots}
    cache = settings.data.cache
    beside = (model_file.parent,) if is_address(cache) else (Path(cache), model_file.parent)
    stored = StoredExperts.read(known, source.expert_specs, str(cache), *beside, option="data.experts=[]")
    device = "cpu" if settings.device == "cpu" else best_device()

    def time_experts() -> dict[str, float | None]:
        experts = open_experts(
            settings.data.experts or tuple(known),
            device=device,
            config=settings.data.catalog,
            trust_code=trust_code,
            stored=stored,
        )
        same = [one for one in experts if known.get(one.name) == one.identity.weights_sha256]
        return {one.name: seconds_per_pixel(one) for one in same}

    return fit_after_training(
        model_file,
        settings.data.cache,
        tuple(known),
        time_experts,
        training_items=source.training_items,
        held_out_items=source.held_out_items,
        device=device,
    )


def make_task(settings: TrainSettings, live: bool, rank: int, world: int, *, trust_code: bool = False) -> Task:
    """The task that the settings name, on the source that the command line names."""
    if settings.task == "expert":
        return ExpertTask(settings, NETWORKS, rank, world)
    if settings.task == "distil":
        return DistilTask(settings, make_student(settings), make_rival(settings), rank, world)
    if settings.task == "refiner":
        return RefinerTask(settings, rank, world)
    if live:
        return FusionTask(settings, live_source(settings, rank, world, trust_code=trust_code))
    return FusionTask(settings, CacheSource(settings, rank, world))


def make_student(settings: TrainSettings) -> Student:
    """A native network or EDSR by its short name, one of spandrel's by its class, or the network of a file."""
    wanted, seed = settings.network, initial_weights_seed(settings.network, settings.seed)
    # By its class's name as well: on the command line of distil, `msg` is the expert of that name.
    ours = NETWORKS | {kind.architecture: kind for kind in NETWORKS.values()}
    if wanted.name in ours:
        network, architecture = (
            build_network(ours, wanted, settings.seed, settings.data.scale),
            ours[wanted.name].architecture,
        )
        return Student(network, architecture, wanted.settings, lambda one, lr_BCHW: one(lr_BCHW))
    if wanted.name == FROM_FILE:
        made = open_student(str(wanted.settings.get("file", "")), load_catalog(settings.data.catalog))
    else:
        made = build_architecture(wanted.name, wanted.settings, seed, settings.data.scale)
    settings.data.require_scale(made.scale, "network.name")
    return Student(made.network, made.architecture, made.hyperparameters, made.run)


def make_rival(settings: TrainSettings) -> Rival | None:
    """What the student must beat: the rival that is named, else the file that it goes on from."""
    started = settings.network.settings.get("file") if settings.network.name == FROM_FILE else None
    wanted = settings.distil.rival or started
    if wanted is None:
        return None
    (expert,) = open_experts([str(wanted)], config=settings.data.catalog, features="none")
    settings.data.require_scale(expert.identity.scale, "distil.rival")
    return Rival(expert.name, lambda lr_BCHW: expert.run(lr_BCHW).sr_BCHW)


def live_source(settings: TrainSettings, rank: int, world: int, *, trust_code: bool = False) -> LiveSource:
    """Experts that run as we train."""
    if not settings.data.experts:
        raise Refusal("no experts are named", where="data.experts", cure="give data.experts=[NAME,...] with --live")
    device = "cpu" if settings.device == "cpu" else best_device()
    experts = open_experts(settings.data.experts, device=device, config=settings.data.catalog, trust_code=trust_code)
    settings.data.require_scale(scale_of(experts), "data.experts")
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
    specs = {name: one.model_dump(mode="json", exclude_defaults=True) for name, one in stored_specs(experts).items()}
    return LiveSource(settings, slots, ask, rank, world, specs)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="train.py", description="train an expert, or the fusion of experts")
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to change")
    parser.add_argument("--cache", type=parse_location, help="train fusion from this folder or s3:// (data.cache)")
    add_local_cache_arguments(parser)
    parser.add_argument("--live", action="store_true", help="train fusion with data.experts running on data.hr")
    parser.add_argument("--catalog", type=Path, help="a YAML file with further experts (data.catalog)")
    parser.add_argument("--trust-code", action="store_true", help="run the Python file of an expert with code")
    parser.add_argument("--resume", choices=["auto"], help="go on where this run was stopped, or begin it")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    parser.add_argument(
        "--probe", type=float, metavar="SECONDS", help="time steps for so long, print JSON, keep nothing"
    )
    parser.add_argument("--pace", type=_counts, metavar="STEPS[,LIVE]", help="time steps, print JSON, keep nothing")
    help_text = "only fit the budget model (budget.json) of this finished model"
    parser.add_argument("--fit-budget", type=Path, metavar="MODEL", help=help_text)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    return parser


def _counts(text: str) -> tuple[int, ...]:
    """`40,1` -> numbers above 0; argparse tells what cannot be read."""
    counts = tuple(int(word) for word in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text} counts no steps")
    return counts


if __name__ == "__main__":
    sys.exit(run(main))
