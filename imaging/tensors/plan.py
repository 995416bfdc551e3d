"""What a file of tensors has been found to claim -> a refusal as soon as it is more than such a file can rightly hold.

`walk.py` fills it while it walks the pickle.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

# Everything that an image network or a training state is made of.
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
UNWANTED = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "_rebuild_wrapper_subclass": "a tensor without values",
}
DAMAGED = "is damaged, or holds more than tensors and was not opened, since that could run foreign code"
# Of a file's own bytes: views and expanded tensors share them, and a few times over is all that files in use do.
TIMES, AT_LEAST = 20, 1 << 26
_MOST_VALUES, _DEEPEST = 1_000_000, 100  # entries of all containers together; a file that holds itself has no end


@dataclass(frozen=True)
class StorageClaim:
    """A storage that would be made."""

    dtype: str
    items: int


@dataclass(frozen=True)
class TensorClaim:
    """A tensor that would be made."""

    count: int


class Plan:
    """What one file has been found to hold so far."""

    def __init__(self, path: Path, cure: str, size: int) -> None:
        self.path, self.cure, self.size = path, cure, size
        self.stored: dict[str, int] | None = (
            None  # bytes of each storage where they are known before the pickle is read
        )
        self.claimed: dict[str, int] = {}
        self._made = 0

    def refuse(self, what: str) -> NoReturn:
        """One line."""
        raise Refusal(what, where=self.path, cure=self.cure)

    def storage(self, identity: Any) -> StorageClaim:
        """('storage', type, key, device, items, ...) -> the storage, whose bytes the file must hold."""
        mark, kind, key, _, items, *_ = identity
        if mark != "storage" or not isinstance(kind, Marker) or not isinstance(items, int) or items < 0:
            self.refuse(DAMAGED)
        dtype = _STORAGES.get(kind.name)
        if dtype is None:
            self.refuse(f"holds numbers of the kind {kind.name.removesuffix('Storage')}, which no image network has")
        count = items * ITEM_BYTES[dtype]
        self.claimed[str(key)] = count
        held = self.stored.get(str(key), -1) if self.stored is not None else self.size
        wrong = count > held if self.stored is None else count != held
        if wrong or sum(self.claimed.values()) > max(self.size, AT_LEAST):
            self.refuse(f"claims {count:,} bytes for a storage that holds {max(held, 0):,}")
        return StorageClaim(dtype, items)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None = None) -> TensorClaim:
        """A dense view into a storage, in whole."""
        numbers = (offset, *size, *stride)
        if not isinstance(storage, StorageClaim) or len(size) != len(stride) or not all(map(_is_count, numbers)):
            self.refuse(DAMAGED)
        item = ITEM_BYTES[dtype or storage.dtype]
        items = storage.items * ITEM_BYTES[storage.dtype] // item
        count = math.prod(size)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if count and last >= items:
            self.refuse(f"has a tensor of {'x'.join(map(str, size))} numbers in a storage of {items:,}")
        self._made += count * item
        if self._made > max(TIMES * self.size, AT_LEAST):
            self.refuse(f"would take more than {self._made:,} bytes of memory, the file has {self.size:,}")
        return TensorClaim(count)

    def require_finite_depth(self, document: Any) -> None:
        """Containers that hold themselves, or each other many times over, would be walked without an end."""
        pending, seen = [(document, 0)], 0
        while pending:
            value, depth = pending.pop()
            seen += 1
            if seen > _MOST_VALUES or depth > _DEEPEST:
                self.refuse("holds containers within each other without an end")
            if isinstance(value, OrderedDict) and vars(value).keys() - {"_metadata"}:
                self.refuse(DAMAGED)  # attributes would hide its methods
            if isinstance(value, dict):
                pending += [(one, depth + 1) for one in value.values()]
            elif isinstance(value, (list, tuple, set)):
                pending += [(one, depth + 1) for one in value]


@dataclass(frozen=True, slots=True)
class Marker:
    """A type or number format that the file names; calling it would make something."""

    name: str


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
