"""An address, or none -> this process as a driver of a Ray cluster; nothing is waited for where nobody listens."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from imaging.refusal import Refusal

_CURE = "start it with `ray start --head`, or leave --address out to start Ray on this machine"


def import_ray() -> Any:
    """The package; without it a refusal that names the extra."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        cure = "pip install 'championship-sr[cluster]', or leave --engine out"
        raise Refusal("needs the package ray", where="--engine ray", cure=cure) from None
    return ray


def connect(ray: Any, given: str | None) -> None:
    """Join the cluster at an address, or start one of this command's own: `ray.shutdown` ends either."""
    address = given or os.environ.get("RAY_ADDRESS", "")
    _require_listener(address)
    try:
        # "local": else Ray would join any cluster that runs on this machine. One progress bar, the driver's: what
        # workers print stays in Ray's own logs.
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        cure = f"{_CURE}; where it asks for a token, set RAY_AUTH_MODE=token"
        raise Refusal(f"no Ray cluster answers ({error})", where="--address", cure=cure) from None


def _require_listener(address: str) -> None:
    """Ray itself tries a wrong address for minutes and then ends the process; `auto` and ray:// are left to it."""
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise Refusal(f"no Ray cluster answers at {address} ({error})", where="--address", cure=_CURE) from None
