"""`python -m fusion bench`: the default network and the original layout -> what a training step costs, as a table."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.fusion import measure
from imaging.atomic import write_text
from imaging.command import DONE, CommandParser, output_file, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.fusion.measure import Kind, Size

KINDS: tuple[Kind, ...] = ("default", "every phase", "original")


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the report where asked."""
    parser = CommandParser(prog="python -m fusion bench", description=__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr-size", type=int, default=64, help="side of the LR patches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--out", type=output_file, help="write the report here as Markdown")
    options = parser.parse_args(arguments)
    report = compare(measure.Size(options.batch, options.lr_size, options.device), options.repeats)
    if options.out is not None:
        command = f"python -m fusion bench --batch {options.batch} --lr-size {options.lr_size} --out {options.out}"
        write_text(options.out, as_markdown(report, command))
    if options.json:
        print_json(report)
    else:
        sys.stdout.write(as_markdown(report, "python -m fusion bench"))
    return DONE


def compare(size: Size, repeats: int) -> dict[str, Any]:
    """The networks on the same batch, then ours phase by phase."""
    networks = {kind: _network(kind, size, repeats) for kind in KINDS}
    costs = ("multiply_adds", "seconds", "peak_bytes")
    ratios = {
        kind: {key: networks["original"][key] / networks[kind][key] for key in costs if networks[kind][key]}
        for kind in KINDS
        if kind != "original"
    }
    return {
        "batch": size.batch,
        "lr_size": size.lr_size,
        "device": torch.cuda.get_device_name() if size.device != "cpu" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "networks": networks,
        "ratios": ratios,
        "phases": measure.phases(size, repeats),
        "operations": measure.busiest_operations(size),
    }


def _network(kind: Kind, size: Size, repeats: int) -> dict[str, Any]:
    step = measure.build(kind, size)
    return {
        "parameters": sum(p.numel() for p in measure.build_network(kind).parameters()),
        "multiply_adds": measure.multiply_adds(step),
        "seconds": measure.seconds(step, repeats, size.device),
        "peak_bytes": measure.peak_bytes(kind, size),
    }


def as_markdown(report: dict[str, Any], command: str) -> str:
    """The report for people."""
    side = report["lr_size"]
    lines = [
        "# What a training step of the fusion network costs",
        "",
        f"Made by `{command}` with torch {report['torch']} on {report['device']}, {report['threads']} threads: forward"
        f" and backward, {report['batch']} LR patches of {side}x{side}, four experts with 796 feature channels,"
        " float32, without the optimizer. Multiply-adds are those of convolutions and matrix products, counted by"
        " `torch.utils.flop_counter`; seconds are the processor's on a CPU, shortest of several steps.",
        "",
        "| | parameters | multiply-adds | per LR pixel | seconds | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    pixels = report["batch"] * side * side
    titles = {
        "default": "this network, its default phases",
        "every phase": "this network, every phase on",
        "original": "the original layout",
    }
    lines += [_row(titles[kind], network, pixels) for kind, network in report["networks"].items()]
    for kind, ratios in report["ratios"].items():
        memory = f"{ratios['peak_bytes']:.1f}x" if "peak_bytes" in ratios else "-"
        macs, seconds = ratios["multiply_adds"], ratios["seconds"]
        lines.append(f"| **original / {kind}** | | **{macs:.1f}x** | | **{seconds:.1f}x** | **{memory}** |")
    lines.append("")
    return "\n".join(lines + _where(report)) + "\n"


def _row(title: str, network: dict[str, Any], pixels: int) -> str:
    memory = network["peak_bytes"]
    return (
        f"| {title} | {network['parameters']:,} | {network['multiply_adds'] / 1e9:.2f} G"
        f" | {network['multiply_adds'] / pixels / 1e6:.2f} M | {network['seconds']:.2f}"
        f" | {f'{memory / 2**20:,.0f} MiB' if memory else 'not measured'} |"
    )


def _where(report: dict[str, Any]) -> list[str]:
    """Which phase and which operations the time goes to."""
    whole = [entry for entry in report["phases"] if "." not in entry["phase"]]
    inner = [entry for entry in report["phases"] if "." in entry["phase"]]
    total = sum(entry["seconds"] for entry in whole)
    slowest = max(whole, key=lambda entry: entry["seconds"])
    attention = sum(entry["seconds"] for entry in inner) / total
    lines = [
        "## Where the time goes",
        "",
        f"Every phase on, each alone, forward and backward. The bottleneck is **{slowest['phase']}** with"
        f" {slowest['seconds'] / total:.0%} of the phases' time; attention over the tokens of a pixel, in both places"
        f" together, takes {attention:.0%}.",
        "",
        "| phase | parameters | multiply-adds | seconds | share |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {entry['phase']} | {entry['parameters']:,} | {entry['multiply_adds'] / 1e9:.3f} G"
        f" | {entry['seconds']:.3f} | {entry['seconds'] / total:.0%} |"
        for entry in whole + inner
    ]
    lines += ["", "| operation of a whole step | calls | share of its time |", "|---|---|---|"]
    return lines + [f"| `{op['operation']}` | {op['calls']} | {op['share']:.0%} |" for op in report["operations"]]
