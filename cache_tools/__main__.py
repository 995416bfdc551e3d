"""`python -m cache_tools COMMAND` -> exit code 0 done, 1 finished with failures listed, 2 refused."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from cache_tools import options as command_line
from cache_tools.convert.import_images import import_images
from cache_tools.convert.import_pt import import_pt
from cache_tools.convert.merge import merge
from cache_tools.convert.repack import repack
from cache_tools.convert.transfer import pull, push
from cache_tools.info import describe, in_lines
from cache_tools.storage.item_cache import set_local_cache
from cache_tools.verify import verify
from cache_tools.write.cluster_plan import cluster_in_table, plan_cluster
from cache_tools.write.extract import Report, extract
from cache_tools.write.plan import in_table, make_plan
from cache_tools.write.ray_engine import extract_on_ray
from cache_tools.write.sequential import extract_sequentially
from imaging.cluster.options import cluster_options_of
from imaging.command import DONE, FAILURES_LISTED, goes_on_by, print_json, run
from imaging.paths import require_checkout
from imaging.refusal import Refusal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from cache_tools.write.pairs import Failure


@goes_on_by("the same command")
def main(arguments: Sequence[str]) -> int:
    """Parse, call, report."""
    options = command_line.parse(arguments)
    if hasattr(options, "local_cache"):
        set_local_cache(options)
    commands = {
        "plan": _plan,
        "extract": _extract,
        "info": _info,
        "verify": _verify,
        "merge": _merge,
        "repack": _repack,
        "push": _push,
        "pull": _pull,
        "import-images": _import_images,
        "import-pt": _import_pt,
        "bench": _bench,
    }
    return commands[options.command](options)


def _plan(options: argparse.Namespace) -> int:
    settings = command_line.settings_of(options)
    experts = command_line.experts_of(options)
    plan = make_plan(settings, experts, timed=not options.no_timing)
    document, text = asdict(plan), in_table(plan, settings.profile)
    if options.workers is not None:
        on_cluster = plan_cluster(plan, settings, experts, workers=options.workers, gpu=options.gpu, rate=options.rate)
        document["cluster"] = asdict(on_cluster)
        text += "\n" + cluster_in_table(on_cluster, settings)
    elif options.gpu is not None or options.rate is not None:
        raise Refusal("is a property of workers", where="--gpu, --rate", cure="add --workers N")
    _print(options, document, text)
    return _listed(options, plan.failures)


def _extract(options: argparse.Namespace) -> int:
    settings = command_line.settings_of(options)
    rank, world = command_line.rank_and_world(options.shard)
    cluster = cluster_options_of(options)
    if cluster is not None:
        if options.sequential:
            cure = "leave one out; experts that do not fit together can be extracted one by one, then `merge`d"
            raise Refusal("--sequential and --engine ray exclude each other", where="command line", cure=cure)
        experts = partial(command_line.experts_of, options)
        report = extract_on_ray(settings, experts, cluster, rank=rank, world=world)
    elif options.sequential:
        report = extract_sequentially(settings, command_line.openers_of(options), rank=rank, world=world)
    else:
        report = extract(settings, command_line.experts_of(options), rank=rank, world=world)
    return _report(options, report)


def _info(options: argparse.Namespace) -> int:
    info = describe(options.cache, score=options.score)
    _print(options, info, in_lines(info))
    return DONE


def _verify(options: argparse.Namespace) -> int:
    report = verify(options.cache, full=options.full, quarantine=options.quarantine)
    text = f"{report.items} items checked ({report.depth}), {len(report.failures)} bad"
    if report.unfinished:
        text += f"; {report.unfinished} planned items are not there yet: run extract again"
    if report.failures and not options.quarantine:
        text += "; --quarantine moves damaged items aside, for extract to make them anew"
    if report.quarantined:
        text += f"; {len(report.quarantined)} put into quarantine: run extract again to make them anew"
    _print(options, asdict(report), text)
    return _listed(options, report.failures)


def _merge(options: argparse.Namespace) -> int:
    done = merge(options.caches, options.out)
    _print(options, asdict(done), f"{done.way}: {done.made} items written, {done.kept} existed")
    return DONE


def _repack(options: argparse.Namespace) -> int:
    done = repack(
        options.cache, options.out, profile=options.profile, experts=options.experts, compression=options.compress
    )
    _print(options, asdict(done), f"{done.way}: {done.made} items written, {done.kept} existed")
    return DONE


def _push(options: argparse.Namespace) -> int:
    done = push(options.cache, options.address)
    _print(options, asdict(done), f"{done.way}: {done.made} items copied, {done.kept} existed")
    return DONE


def _pull(options: argparse.Namespace) -> int:
    done = pull(options.address, options.cache)
    _print(options, asdict(done), f"{done.way}: {done.made} items copied, {done.kept} existed")
    return DONE


def _import_images(options: argparse.Namespace) -> int:
    return _report(options, import_images(command_line.settings_of(options), options.folders, options.scale))


def _import_pt(options: argparse.Namespace) -> int:
    return _report(
        options, import_pt(options.folder, options.out, profile=options.profile, compression=options.compress)
    )


def _bench(options: argparse.Namespace) -> int:
    require_checkout("python -m cache_tools bench")
    from benchmarks.cache.all import bench, training  # imports whole architectures, which no other command needs

    if options.training:
        steps = (options.steps[0], options.steps[1])
        results, text = training(
            work=options.work,
            out=options.out,
            images=options.items,
            patch=options.patch,
            batch=options.batch,
            steps=steps,
        )
        _print(options, results, text)
        return DONE
    results, text = bench(
        work=options.work, items=options.items, size=options.size, patches=options.patches, out=options.out
    )
    _print(options, results, text)
    return DONE


def _report(options: argparse.Namespace, report: Report) -> int:
    text = f"{len(report.made)} items made, {len(report.kept)} existed, {len(report.failures)} failed"
    _print(options, {"cache": str(options.out), **asdict(report)}, text)
    return _listed(options, report.failures)


def _listed(options: argparse.Namespace, failures: Sequence[Failure]) -> int:
    """Failures, one per line, unless they are in the JSON already; the exit code."""
    if not options.json:
        for failure in failures:
            print(f"failed: {failure.item}: {failure.reason}")
    return FAILURES_LISTED if failures else DONE


def _print(options: argparse.Namespace, document: Any, text: str) -> None:
    """The JSON document with --json, else the text."""
    if options.json:
        print_json(document)
    else:
        print(text)


if __name__ == "__main__":
    sys.exit(run(main))
