"""`python -m fusion COMMAND ...` -> the command's own module and its exit code."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING

from imaging.command import DONE, goes_on_by, run
from imaging.paths import require_checkout
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from pathlib import Path

# Command: (the module whose `main(arguments)` does it, what it does). Modules are imported when called.
COMMANDS = {
    "analyze": ("fusion.evaluation.analyze", "what fusion could gain from a cache, before any training"),
    "evaluate": ("fusion.evaluation.evaluate", "PSNR, SSIM and LPIPS of a folder of images"),
    "judge": ("fusion.evaluation.judge", "a trained fusion model against its experts on benchmark caches"),
    "ablate": ("fusion.evaluation.ablate", "train variants of a config under one budget and compare them"),
    "train-all": ("fusion.train_all.train_all", "train all experts and their fusion within a time budget"),
    "distil": ("fusion.distillation.command", "train one small network on an ensemble's images"),
    "render": ("fusion.distillation.render", "an ensemble's images into a cache, for distil and the refiner"),
    "doctor": ("fusion.evaluation.doctor", "check a model and print what it is made of"),
    "submit": ("fusion.inference.report.submission", "check a folder of outputs and pack it for a challenge"),
    "fit-base": ("fusion.training.tasks.fit_base", "fit the base alone: a fusion without training, in one pass"),
    "fit-budget": ("fusion.budget.fit", "learn from a cache which tiles are worth which experts"),
    "bench-budget": ("benchmarks.inference.budget", "measure a budget's curve of quality over cost by infer.py"),
    "bench-pareto": ("benchmarks.inference.pareto", "quality over CPU time of all experts and presets here"),
    "bench-speed": ("benchmarks.inference.speed", "the default of an older checkout and of this one, in turns"),
    "bench-inference": ("benchmarks.inference.cost", "measure memory and seams of infer.py"),
    "bench-refine": ("benchmarks.inference.refinement", "measure the native refiner on benchmarks, at every strength"),
    "show-refine": ("benchmarks.inference.refinement_crops", "a picture of crops: bicubic, fused, refined, truth"),
    "calibrate-look": ("benchmarks.inference.calibrate_input_check", "measure when inputs are warned about"),
    "export": ("fusion.export.command", "an ensemble with its fusion as one ONNX file"),
    "serve": ("fusion.studio.serve", "the studio: a local web page for looking at fusion"),
    "bench": ("benchmarks.fusion.step_cost", "measure what a training step costs against the original layout"),
}
RESUMED = ("train-all", "distil", "render", "ablate")  # what the same command again goes on with


def main(arguments: Sequence[str]) -> int:
    """Hand over to the command, or list them."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m fusion COMMAND ...\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:16} {summary}")
        return DONE
    name, *rest = arguments
    if name not in COMMANDS:
        raise Refusal(f"no command '{name}'", where="python -m fusion", cure=nearest(name, COMMANDS))
    module = COMMANDS[name][0]
    if module.startswith("benchmarks."):
        require_checkout(f"python -m fusion {name}")
    with goes_on_by("the same command") if name in RESUMED else nullcontext():
        return FRONT_DOORS[name](rest) if name in FRONT_DOORS else import_module(module).main(rest)


def serve(arguments: Sequence[str]) -> int:
    """The studio runs experts, which fusion does not know: it is handed `infer.build`, which opens them."""
    import infer  # not above: every other command would load the experts' code, too
    from fusion.studio import serve as studio

    return studio.main(arguments, build=infer.build)


def export(arguments: Sequence[str]) -> int:
    """As `serve`; each expert's graph comes with it."""
    import infer
    from experts.export.hand_over import graph_of
    from experts.words import split_words
    from fusion.export.command import OpenedEnsemble
    from fusion.export.command import main as export_main
    from fusion.inference.model_selection import select_model
    from imaging.device import find_device

    def open_ensemble(model: str, experts: str | None, catalog: Path | None, *, trust_code: bool) -> OpenedEnsemble:
        selection, cpu = select_model(model, split_words(experts) if experts else None), find_device("cpu")
        sources, opened = infer.open_selected(selection, cpu, config=catalog, trust_code=trust_code)
        by_name = {one.name: one for one in opened}
        return OpenedEnsemble(
            infer.assemble(selection, sources, opened, cpu),
            selection.fusion,
            lambda name, features: graph_of(by_name[name], features=features),
        )

    return export_main(arguments, open_ensemble=open_ensemble)


def render_teacher(options: Namespace, out: Path, *, device: str) -> Path:
    """The ensemble of a command line, its images into a cache of cache_tools."""
    import infer
    from championship_sr.teacher import EnsembleExpert, render, with_cached_experts
    from experts.words import split_words
    from fusion.inference.ensemble import EIGHTFOLD, PLAIN

    ensemble = infer.build(
        options.model,
        split_words(options.experts) if options.experts else None,
        device=device,
        config=options.catalog,
        trust_code=options.trust_code,
    )
    if options.cache is not None:
        ensemble = with_cached_experts(ensemble, options.cache)
    teacher = EnsembleExpert(ensemble, turns=EIGHTFOLD if options.tta else PLAIN)
    return render(teacher, out, hr=options.hr, lr=options.lr, regions=options.regions)


def render_images(arguments: Sequence[str]) -> int:
    """As `serve`; the images go through cache_tools."""
    from fusion.distillation.render import main as render_main

    return render_main(arguments, render=render_teacher)


def distil(arguments: Sequence[str]) -> int:
    """As `render`; the student is built and trained as train.py does."""
    import train
    from experts.catalog import load_catalog
    from fusion.distillation.command import main as distil_main

    return distil_main(
        arguments,
        render=render_teacher,
        make_task=lambda settings, rank, world: train.make_task(settings, False, rank, world),
        is_expert=lambda name: load_catalog().find(name) is not None,
    )


FRONT_DOORS = {"serve": serve, "export": export, "distil": distil, "render": render_images}

if __name__ == "__main__":
    sys.exit(run(main))
