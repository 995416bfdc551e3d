"""Named tensors and a header of text <-> a .safetensors file that carries a digest of both, checked at opening.

safetensors itself has no checksum: a flipped bit of a weight, or of a digit in the header, would load as another model.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from imaging.atomic import atomic_path
from imaging.names import valid_text
from imaging.refusal import Refusal
from imaging.tensors.plan import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from torch import Tensor

log = logging.getLogger(__name__)

DIGEST = "digest"
# What the header of an expert's weights has that were trained here; the last only where branches were folded.
WEIGHTS_KEYS, WEIGHTS_OPTIONAL = ("architecture", "hyperparameters", "provenance"), ("folded_from_sha256",)
UNSEALED = "carries no digest, as files of earlier releases: damage to it cannot be noticed"
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
assert len(_DTYPES) == len(ITEM_BYTES)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write the file whole or not at all, its digest in the header."""
    if valid_text(str(path)) != str(path):
        raise Refusal("is a name that safetensors cannot write (not UTF-8)", where=path, cure="choose another name")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    kept = {key: value for key, value in header.items() if key != DIGEST}
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask says; save_file's own lets nobody else read
        save_file(plain, temporary, metadata=kept | {DIGEST: digest_of(kept, plain)})
        temporary.chmod(mode)


def read_safetensors(
    path: Path, *, cure: str, keys: Collection[str] = (), optional: Collection[str] = (), vouched: bool = False
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(header, tensors) of dense numbers that networks use; whatever is damaged or odd is refused.

    A file of ours has all `keys` in its header, perhaps some `optional` ones, and no others: without a digest it is
    read with a note, unless `vouched` for by a hash of the whole file. Of files from elsewhere nothing can be said.
    """
    if valid_text(str(path)) != str(path):
        raise Refusal("is a name that safetensors cannot open (not UTF-8)", where=path, cure="rename it")
    try:
        header, tensors = _read(path, cure)
    except OSError as error:
        raise Refusal(f"cannot be read ({error.strerror or error})", where=path, cure="check its permissions") from None
    except (SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refusal(f"is damaged or not a whole safetensors file ({first[:120]})", where=path, cure=cure) from None
    given = header.pop(DIGEST, None)
    if given is not None:
        if given != digest_of(header, tensors):
            raise Refusal("its header or weights are not those that were saved", where=path, cure=cure)
    elif keys and header.keys() >= set(keys):
        # A damaged name of the digest itself must not pass for a file from before there was one.
        unknown = sorted(header.keys() - {*keys, *optional})
        if unknown:
            raise Refusal(f"its header has an unknown entry '{unknown[0]}'", where=path, cure=cure)
        if not vouched:
            log.info("%s: %s", path, UNSEALED)
    return header, tensors


def _read(path: Path, cure: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as stream:
        names = list(stream.keys())
        for name in names:
            kind = stream.get_slice(name).get_dtype()
            if kind not in _DTYPES:
                what = f"'{name}' holds numbers of the kind {kind}, which no image network has"
                raise Refusal(what, where=path, cure=cure)
        return dict(stream.metadata() or {}), {name: stream.get_tensor(name) for name in names}


def digest_of(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the header and each tensor's name, type, shape and bytes, by name."""
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
