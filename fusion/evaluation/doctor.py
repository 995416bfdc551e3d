"""`python -m fusion doctor --model PATH|default`: a model -> parameters per phase, base, invariants checked.

Axes: B batch, E experts, C = 3 colours, H and W of the LR image.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from fusion.network import FusionSR
from imaging.command import DONE, FAILURES_LISTED, CommandParser, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_SIZES = ((8, 8), (13, 21))  # the smallest, and an odd one


def main(arguments: Sequence[str]) -> int:
    """Load, examine, print."""
    parser = CommandParser(prog="python -m fusion doctor", description=__doc__)
    parser.add_argument("--model", default="default", help="a model file, folder or Hub id; 'default': untrained")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    model = FusionSR() if options.model == "default" else FusionSR.from_pretrained(options.model)
    report = examine(model.eval(), options.model)
    if options.json:
        print_json(report)
    else:
        sys.stdout.write(as_text(report))
    return DONE if all(check["passed"] for check in report["checks"]) else FAILURES_LISTED


def examine(model: FusionSR, name: str) -> dict[str, Any]:
    """The full report, as one document."""
    phases, names = model.parameters_per_phase(), model.settings.names
    base = model.base.record
    return {
        "model": name,
        "parameters": sum(phases.values()),
        "parameters_per_phase": phases,
        "features": model.settings.features,
        "experts": [slot.model_dump() for slot in model.settings.experts],
        "base": {
            "fitted": base.fitted,
            "items": base.items,
            "source": base.source,
            "groups": base.groups,
            "weights": dict(zip(names, zip(*model.base.weights(names), strict=True), strict=True)),
            "held_out": base.held_out,
        },
        "training": model.record.model_dump(),
        "checks": [{"check": what, "passed": passed} for what, passed in _checks(model)],
    }


@torch.no_grad()
def _checks(model: FusionSR) -> list[tuple[str, bool]]:
    """The invariants of every model, on noise; and the one that holds before training."""
    names = model.settings.names
    checks = [("every weight is finite", all(bool(p.isfinite().all()) for p in model.parameters()))]
    for height, width in _SIZES:
        output = model(*_noise(model, height, width))
        fits = tuple(output.image_BCHW.shape[-2:]) == (model.settings.scale * height, model.settings.scale * width)
        checks.append((f"{height}x{width} gives a finite image", fits and bool(output.image_BCHW.isfinite().all())))
        sums = output.gates_BEHW.sum(dim=1)
        checks.append((f"{height}x{width}: weights sum to 1", torch.allclose(sums, torch.ones_like(sums), atol=1e-4)))
    lr_BCHW, sr_BECHW, feats = _noise(model, 16, 16)
    for index, name in enumerate(names):
        alone = model(lr_BCHW, sr_BECHW[:, index : index + 1], feats, (name,))
        checks.append((f"{name} alone gives a finite image", bool(alone.image_BCHW.isfinite().all())))
    constrained = model.settings.envelope.enabled or model.settings.consistency.enabled
    if model.record.verdict in ("untrained", "base") and not constrained:
        output = model(lr_BCHW, sr_BECHW, feats)
        checks.append(("the output is the base, bit for bit", torch.equal(output.image_BCHW, output.base_BCHW)))
    return checks


def _noise(model: FusionSR, height: int, width: int) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    generator = torch.Generator().manual_seed(0)
    lr_BCHW = torch.rand(1, 3, height, width, generator=generator)
    large = (model.settings.scale * height, model.settings.scale * width)
    sr_BECHW = torch.rand(1, len(model.settings.names), 3, *large, generator=generator)
    channels = {name: model.settings.channels_of(name) for name in model.settings.names}
    feats = {name: torch.randn(1, c, height, width, generator=generator) for name, c in channels.items() if c}
    return lr_BCHW, sr_BECHW, dict(feats)


def as_text(report: dict[str, Any]) -> str:
    """The report for people: a table per part."""
    lines = [f"model     {report['model']} ({report['training']['verdict']})", "", "phase            parameters"]
    lines += [f"{phase:16} {count:>10,}" for phase, count in report["parameters_per_phase"].items()]
    lines += [f"{'all':16} {report['parameters']:>10,}", "", "expert           channels  base weight  weights' sha256"]
    for slot in report["experts"]:
        weights = " ".join(f"{weight:+.3f}" for weight in report["base"]["weights"][slot["name"]])
        lines.append(f"{slot['name']:16} {slot['channels']:>8}  {weights:11}  {slot['sha256'] or 'any'}")
    base = report["base"]
    origin = f"fitted on {base['items']} items ({base['source'] or 'unnamed'})"
    lines += ["", f"base      {origin if base['fitted'] else 'not fitted: the plain mean'}"]
    lines += [f"          held out, {name}: {psnr:.3f} dB" for name, psnr in base["held_out"].items()]
    lines += [""] + [f"{'ok    ' if check['passed'] else 'FAILED'}    {check['check']}" for check in report["checks"]]
    return "\n".join(lines) + "\n"
