"""`--engine ray` and its options -> how many workers, each with what, in which cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imaging.refusal import Refusal

if TYPE_CHECKING:
    import argparse

LOCAL, RAY = "local", "ray"


@dataclass(frozen=True)
class ClusterOptions:
    """`workers` None: as many as fit now; `gpus` None: one where the cluster has any. `retries` is per task."""

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None
    cpus: int = 1
    retries: int = 3


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The same options for every command that can run on a cluster."""
    add = parser.add_argument_group("several machines (needs the extra 'cluster'; docs/cluster.md)").add_argument
    add("--engine", choices=[LOCAL, RAY], default=LOCAL, help="ray: hand the work out to the workers of a Ray cluster")
    add("--address", metavar="auto|HOST:PORT", help="the cluster's head; without it Ray starts on this machine")
    add("--workers", type=int, metavar="N", help="processes that hold the experts; default: as many as fit")
    add("--gpus-per-worker", type=float, metavar="F", help="default: 1 where the cluster has GPUs, else 0")
    add("--cpus-per-worker", type=int, metavar="N", help="CPU threads of each worker (default: 1)")
    add("--retries", type=int, metavar="N", help="times that work is done again after its worker died (default: 3)")


def cluster_options_of(words: argparse.Namespace) -> ClusterOptions | None:
    """None for the local engine, which must not be given a cluster's options."""
    given = {
        name: getattr(words, name)
        for name in ("address", "workers", "gpus_per_worker", "cpus_per_worker", "retries")
        if getattr(words, name) is not None
    }
    if words.engine == LOCAL:
        if given:
            name = f"--{next(iter(given)).replace('_', '-')}"
            raise Refusal("is an option of a cluster", where=name, cure="add --engine ray, or leave it out")
        return None
    least = {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1, "retries": 0}
    for name, value in given.items():
        if name in least and value < least[name]:
            option = f"--{name.replace('_', '-')}"
            raise Refusal(f"{value} is too few", where=option, cure=f"give {least[name]} or more")
    names = {"gpus_per_worker": "gpus", "cpus_per_worker": "cpus"}
    return ClusterOptions(**{names.get(name, name): value for name, value in given.items()})
