"""`python -m fusion serve`: the studio, a local web page for looking at fusion."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.inference.model_selection import DEFAULT
from fusion.refinement.presets import PRESETS, REFINERS, NativePreset, preset_of
from fusion.studio.folders import Folders
from fusion.studio.jobs.ensemble_cache import EnsembleCache, ModelSettings, RefinerSettings
from fusion.studio.jobs.job_queue import JobQueue
from fusion.studio.jobs.result_store import ResultStore
from fusion.studio.jobs.upscaler import Upscaler
from fusion.studio.uploads import Limits
from imaging.command import DONE, CommandParser
from imaging.device import best_device
from imaging.refusal import Refusal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from fusion.studio.jobs.ensemble_cache import BuildEnsemble

log = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Read when gradio and the Hub's client are imported: no analytics, no version check, no tunnel to a public address.
_OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
}


def main(arguments: Sequence[str], *, build: BuildEnsemble) -> int:
    """Open everything, then serve until Ctrl-C; `build` is `infer.build`, handed over by the front door."""
    options = _parse(arguments)
    if find_spec("gradio") is None:
        cure = "pip install 'championship-sr[studio]'"
        raise Refusal("gradio is not installed", where="python -m fusion serve", cure=cure)
    limits = Limits(options.max_mb, options.max_pixels, options.max_images)
    folders = Folders.of(options.caches, options.runs)
    refiner = refiner_settings(options)
    experts = tuple(options.experts.split(",")) if options.experts else None
    with (
        tempfile.TemporaryDirectory(prefix="studio-") as folder,
        closing(_listen(options.host, options.port)) as listener,
    ):
        os.environ.update(_OFFLINE, GRADIO_TEMP_DIR=str(Path(folder) / "uploads"))
        device = options.device or best_device()
        model = ModelSettings(
            options.model,
            device,
            experts,
            options.config,
            options.budget_model,
            refiner,
            trust_code=options.trust_code,
        )
        upscaler = Upscaler(EnsembleCache.of(model, build), ResultStore(), limits, Path(folder))
        _serve(upscaler, folders, listener, options.host)
    return DONE


def refiner_settings(options: argparse.Namespace) -> RefinerSettings | None:
    """What the command line says of a refiner; None where it names none."""
    if options.refine_model is None:
        if options.refine is not None and isinstance(preset_of(options.refine), NativePreset):
            return RefinerSettings(options.refine, None, options.refine_lora)
        if options.refine is not None or options.refine_lora is not None:
            raise Refusal("needs a base model", where="--refine", cure="add --refine-model with a folder or Hub id")
        return None
    return RefinerSettings(options.refine or next(iter(PRESETS)), options.refine_model, options.refine_lora)


def _serve(upscaler: Upscaler, folders: Folders, listener: socket.socket, host: str) -> None:
    import uvicorn  # comes with gradio, which is an extra

    from fusion.studio.app import make_app  # imports gradio: after the environment was set

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it would log where the events of every run end
    port = listener.getsockname()[1]
    loopback = host in _LOOPBACK
    with closing(JobQueue()) as queue:
        app = make_app(upscaler, queue, folders, loopback=loopback)
        # Two seconds: an open page holds a connection for its whole life, Ctrl-C must not wait for it.
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        logging.getLogger("uvicorn.error").addFilter(_is_worth_logging)
        name = f"[{host}]" if ":" in host else host
        log.info("studio: http://%s:%d (Ctrl-C ends it)", name, port)
        if not loopback:
            log.warning("it listens on %s: whoever reaches that address can use it", host)
        server.run(sockets=[listener])


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Pages that are still open when the studio ends are cut off: that is no error."""
    cut_off = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut_off and "graceful shutdown" not in record.getMessage()


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound before the models are loaded, so that a taken port is refused at once; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # Else the port of a studio that has just ended would be refused for a minute (TIME_WAIT).
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        cure = "choose another --port (0: any that is free) or --host"
        raise Refusal(f"cannot listen ({error.strerror})", where=f"{host}:{port}", cure=cure) from None
    return listener


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(prog="python -m fusion serve", description=__doc__)
    add = parser.add_argument_group("model, as for infer.py").add_argument
    add("-n", "--model", default=DEFAULT, help="default, strong, none, a folder, a file, or a name on the Hub")
    add("--experts", help="comma-separated names or files")
    add("--catalog", "--config", dest="config", type=Path, metavar="FILE", help="a YAML file with further experts")
    add("--trust-code", action="store_true", help="run the Python file of an expert with code")
    add("--device", help="cpu, cuda, cuda:1, mps; cuda where there is one")
    budget_help = "what `python -m fusion fit-budget` wrote: offers budgets"
    add("--budget-model", "--budget-head", type=Path, metavar="FILE", help=budget_help)
    default_preset = next(iter(PRESETS))
    add("--refine", metavar="NAME", help=f"{' or '.join(REFINERS)}; default: {default_preset}")
    add("--refine-model", metavar="DIR|ID", help="a diffusion model: offers refinement; needs the extra 'diffusion'")
    add("--refine-lora", type=Path, metavar="DIR", help="the method's LoRA files and prompt tensors")
    add = parser.add_argument_group("folders to show; nothing outside them is read").add_argument
    add("--caches", type=Path, metavar="DIR", help="a cache, or a folder of caches")
    add("--runs", type=Path, metavar="DIR", help="a run folder of train.py, or a folder of such")
    add = parser.add_argument_group("serving").add_argument
    add("--host", default=_LOOPBACK[0], help="address to listen at; this machine only by default")
    add("--port", type=int, default=7860, help="0: any that is free")
    defaults = Limits()
    add("--max-mb", type=float, default=defaults.megabytes, help="maximum size of one file")
    add("--max-pixels", type=int, default=defaults.pixels, help="maximum number of pixels of one image")
    add("--max-images", type=int, default=defaults.images, help="images in one job")
    return parser.parse_args(arguments)
