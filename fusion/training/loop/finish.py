"""A trained state -> the best weights scored as they will be stored, the gate's decision, the exported file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_tools.format.location import name_of
from fusion.training.loop.checkpoint import best_path
from imaging.atomic import write_text

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fusion.training.loop.run_folder import RunFolder
    from fusion.training.loop.state import TrainingState
    from fusion.training.settings import TrainSettings
    from fusion.training.sources.loader import Waiting
    from fusion.training.tasks.task import Task

log = logging.getLogger(__name__)


def finish(
    state: TrainingState,
    task: Task,
    settings: TrainSettings,
    accelerator: Accelerator,
    folder: RunFolder,
    waiting: Waiting,
) -> dict[str, Any]:
    """Done in the first process only; the others wait."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return {}
    network = state.average.module
    network.eval()
    _, step = state.best[0]
    task.load(network, best_path(folder.best, step))
    verdict = dict(task.conclude(network, folder.root))  # first: shrinkage and gate change the network's output
    table = task.validate(network)
    path = folder.root / f"{settings.export.name}.safetensors"
    provenance = _provenance(settings, folder, step, table.as_dict(), verdict)
    task.export(path, network.state_dict(), provenance)
    summary = {
        "model": path.name,
        "best_step": step,
        "steps": settings.steps,
        "skipped_batches": state.skipped,
        "data_wait_share": round(waiting.share, 4),
        "scores": table.as_dict(),
        "left_out": sorted(table.left_out),
        **verdict,
    }
    write_text(folder.summary, json.dumps(summary, indent=2) + "\n")
    log.info("%s: weights of step %d\n%s", path, step, table.text(task.judged))
    accelerator.wait_for_everyone()
    return summary


def _provenance(
    settings: TrainSettings, folder: RunFolder, step: int, scores: dict[str, Any], verdict: dict[str, Any]
) -> dict[str, Any]:
    """What made the weights: settings, data, versions, scores. Of paths only the last parts: the rest is private."""
    origin = json.loads(folder.origin.read_text(encoding="utf-8"))
    document = settings.model_dump(
        mode="json",
        include={"task", "steps", "seed", "precision", "ema", "network", "optimizer", "schedule", "stages", "augment"},
    )
    start_from = settings.network.start_from
    document["network"]["start_from"] = None if start_from is None else "/".join(start_from.parts[-2:])
    if "file" in document["network"]["settings"]:  # a student: a shipped expert's name, or a file's path
        document["network"]["settings"]["file"] = Path(document["network"]["settings"]["file"]).name
    document["data"] = {
        "hr": ["/".join(path.parts[-2:]) for path in settings.data.hr],
        "cache": None if settings.data.cache is None else name_of(settings.data.cache),
        "scale": settings.data.scale,
        "degrade": None if settings.data.degrade is None else settings.data.degrade.model_dump(mode="json"),
        "patch": settings.data.patch,
        "batch": settings.data.batch,
        "hold_out": settings.data.hold_out,
        "hold_out_seed": settings.data.hold_out_seed,
        "fingerprint": origin["fingerprint"],
    }
    return {
        "settings": document,
        "git": origin["git"],
        "torch": origin["torch"],
        "step": step,
        **({"prolonged": origin["prolonged"]} if "prolonged" in origin else {}),
        "scores": scores,
        "note": settings.export.note,
        **verdict,
    }
