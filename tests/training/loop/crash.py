"""A program, started by test_crash.py: kills real trainings with SIGKILL and resumes them to the end.

It imports torch once and forks: each child is a training of its own. Usage: FOLDER TASK WORKERS KILLS.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from tqdm import tqdm

import train
from fusion.training.loop import loop
from fusion.training.loop.checkpoint import list_checkpoints, load_checkpoint
from tests.cache.crash import in_child
from tests.training.loop.parts import assert_same
from tests.training.parts import expert_settings, fusion_settings, make_cache, write_pictures

if TYPE_CHECKING:
    from fusion.training.settings import TrainSettings

STEPS = 12
FURTHER = (1, 2, 0, 1)  # checkpoints between a start and its end, kill by kill
PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # has it ended? without taking its exit code away


def settings_for(task: str, folder: Path, run: Path, workers: int) -> TrainSettings:
    """A run that checkpoints often, with everything random switched on."""
    changes = {"steps": STEPS, "checkpoint": {"every": 2}, "validation": {"every": 3}}
    if task == "expert":
        data = {"hr": [str(folder / "hr")], "patch": 8, "batch": 4, "hold_out": 2, "workers": workers}
        augment = {"cutblur": 0.5, "mixup": 0.5, "jitter": 0.5}
        return expert_settings(folder / "hr", run, data=data, augment=augment, **changes)
    data = {"cache": str(folder / "cache"), "patch": 8, "batch": 4, "hold_out": 4, "workers": workers}
    return fusion_settings(folder / "cache", run, data=data, fusion={"expert_dropout": 0.4}, **changes)


def work(settings: TrainSettings) -> None:
    """One training, from wherever its folder stands."""
    loop.train(settings, lambda rank, world: train.make_task(settings, False, rank, world), resume=True)


def whole(run: Path) -> dict[str, object]:
    """What a finished run must agree in, bit for bit: its last state, the exported weights, the scores."""
    step, path = list_checkpoints(run / "checkpoints")[-1]
    assert step == STEPS
    summary = json.loads((run / "summary.json").read_text())
    del summary["data_wait_share"]
    return {"state": load_checkpoint(path), "model": load_file(run / "model.safetensors"), "summary": summary}


def look(run: Path) -> int:
    """Every checkpoint under a final name can be read; the last step among them."""
    found = list_checkpoints(run / "checkpoints")
    for _, path in found:
        load_checkpoint(path)
    return found[-1][0] if found else 0


def wait(run: Path, child: int, more: int, rng: random.Random, longest: float) -> None:
    """Until a random moment: of the start (`more` is 0), or of the steps after so many further checkpoints."""
    goal = len(list_checkpoints(run / "checkpoints")) + more
    while len(list_checkpoints(run / "checkpoints")) < goal and not os.waitid(os.P_PID, child, PEEK):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, longest * (0.1 if more else 0.5)))


def main() -> None:
    folder, task, workers, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    # tqdm's own lock is shared with forked children: one killed while it holds it would stop all later ones.
    tqdm.set_lock(threading.RLock())
    # In a child as well: threads that it starts would be missing, with what they hold, in children forked later.
    prepare = (lambda: write_pictures(folder / "hr")) if task == "expert" else (lambda: make_cache(folder))
    assert os.waitpid(in_child(prepare), 0)[1] == 0
    run = folder / "run"  # one place for all: a run's folder is part of its settings, and so of its weights' header
    begin = time.perf_counter()
    assert os.waitpid(in_child(lambda: work(settings_for(task, folder, run, 0))), 0)[1] == 0
    longest, reference = time.perf_counter() - begin, whole(run)
    shutil.rmtree(run)
    rng, hits, ends, resumed = random.Random(1), 0, 0, set[int]()
    while hits < kills or not ends:
        child = in_child(lambda: work(settings_for(task, folder, run, workers)))
        if hits < kills:
            wait(run, child, FURTHER[hits % len(FURTHER)], rng, longest)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            hits += 1
            resumed.add(look(run))
            continue
        assert status == 0
        assert_same(whole(run), reference)
        ends += 1
        shutil.rmtree(run)
    print(json.dumps({"kills": hits, "ends": ends, "resumed_from": sorted(resumed)}))


if __name__ == "__main__":
    main()
