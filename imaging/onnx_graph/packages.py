"""A package of the `export` extra -> the module, or a refusal that says how to get it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from imaging.refusal import Refusal


def require(*names: str) -> Any:
    """Import the first; the others must be there as well."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        cure = 'pip install "championship-sr[export]"'
        raise Refusal(f"needs the packages {', '.join(missing)}", where="ONNX and ncnn", cure=cure)
    return importlib.import_module(names[0])
