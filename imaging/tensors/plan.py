"""A pickled file of tensors -> nothing, or a refusal: what it would make is looked through before any of it is made.

The pickle is walked with harmless stand-ins for what it calls: layouts, dtypes, shapes and bytes are known afterwards,
no tensor is. torch's own unpickler, which runs after this, would make a tensor of any size, sparse or complex ones, or
bytes by the terabyte.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from pickle import _Unpickler  # pyright: ignore[reportPrivateUsage] # the one in C makes room for any memo number
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn
from zipfile import ZipFile, is_zipfile

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
_UNWANTED = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "_rebuild_wrapper_subclass": "a tensor without values",
}
_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first before its files were zip archives
_DAMAGED = "is damaged, or holds more than tensors and was not opened, since that could run foreign code"
# Of a file's own bytes: views and expanded tensors share them, and a few times over is all that files in use do.
_TIMES, _AT_LEAST = 20, 1 << 26
_MOST_VALUES, _DEEPEST = 1_000_000, 100  # entries of all containers together; a file that holds itself has no end


def require_plain_tensors(path: Path, *, cure: str) -> None:
    """Refuse a file that torch.load would make anything else of than dense tensors of its own size and plain values."""
    plan = _Plan(path, cure, path.stat().st_size)
    try:
        if is_zipfile(path):
            _walk_archive(plan)
        else:
            _walk_stream(plan)
    except Refusal:
        raise
    except OSError as error:
        raise Refusal(f"cannot be read ({error.strerror or error})", where=path, cure=cure) from None
    except Exception as error:  # arbitrary bytes make the unpickler and the zip reader fail in arbitrary ways
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(f"is damaged: cannot be read as tensors ({first[:120]})", where=path, cure=cure) from error


@dataclass(frozen=True)
class _Storage:
    dtype: str
    items: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor that would be made."""

    count: int


class _Plan:
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

    def storage(self, identity: Any) -> _Storage:
        """('storage', type, key, device, items, ...) -> the storage, whose bytes the file must hold."""
        mark, kind, key, _, items, *_ = identity
        if mark != "storage" or not isinstance(kind, _Marker) or not isinstance(items, int) or items < 0:
            self.refuse(_DAMAGED)
        dtype = _STORAGES.get(kind.name)
        if dtype is None:
            self.refuse(f"holds numbers of the kind {kind.name.removesuffix('Storage')}, which no image network has")
        count = items * ITEM_BYTES[dtype]
        self.claimed[str(key)] = count
        held = self.stored.get(str(key), -1) if self.stored is not None else self.size
        wrong = count > held if self.stored is None else count != held
        if wrong or sum(self.claimed.values()) > max(self.size, _AT_LEAST):
            self.refuse(f"claims {count:,} bytes for a storage that holds {max(held, 0):,}")
        return _Storage(dtype, items)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None = None) -> _Tensor:
        """A dense view into a storage, in whole."""
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or len(size) != len(stride) or not all(map(_is_count, numbers)):
            self.refuse(_DAMAGED)
        item = ITEM_BYTES[dtype or storage.dtype]
        items = storage.items * ITEM_BYTES[storage.dtype] // item
        count = math.prod(size)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if count and last >= items:
            self.refuse(f"has a tensor of {'x'.join(map(str, size))} numbers in a storage of {items:,}")
        self._made += count * item
        if self._made > max(_TIMES * self.size, _AT_LEAST):
            self.refuse(f"would take more than {self._made:,} bytes of memory, the file has {self.size:,}")
        return _Tensor(count)

    def require_finite_depth(self, document: Any) -> None:
        """Containers that hold themselves, or each other many times over, would be walked without an end."""
        pending, seen = [(document, 0)], 0
        while pending:
            value, depth = pending.pop()
            seen += 1
            if seen > _MOST_VALUES or depth > _DEEPEST:
                self.refuse("holds containers within each other without an end")
            if isinstance(value, OrderedDict) and vars(value).keys() - {"_metadata"}:
                self.refuse(_DAMAGED)  # attributes would hide its methods
            if isinstance(value, dict):
                pending += [(one, depth + 1) for one in value.values()]
            elif isinstance(value, (list, tuple, set)):
                pending += [(one, depth + 1) for one in value]


@dataclass(frozen=True, slots=True)
class _Marker:
    """A type or number format that the file names; calling it would make something."""

    name: str


class _Walker(_Unpickler):
    """Reads a pickle; what torch's rebuilding functions would make is only noted."""

    def __init__(self, file: _Bounded, plan: _Plan) -> None:
        super().__init__(file, encoding="utf-8")
        self._plan = plan

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name that tensors are made with; any other name is refused."""
        plan = self._plan
        if module == "torch._utils" and name in _UNWANTED:
            plan.refuse(f"holds {_UNWANTED[name]}, which no image network has")
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("collections", "Counter"): dict,
            ("torch._utils", "_rebuild_tensor"): plan.tensor,
            ("torch._utils", "_rebuild_tensor_v2"): lambda one, at, size, step, *_: plan.tensor(one, at, size, step),
            ("torch._utils", "_rebuild_tensor_v3"): self._with_dtype,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
            ("torch._tensor", "_rebuild_from_type_v2"): lambda rebuild, _kind, given, _state: rebuild(*given),
            ("torch", "Size"): tuple,
            ("torch", "device"): lambda *given: given,
            ("_codecs", "encode"): lambda text, encoding: _encoded(text, encoding),
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage") and (name.endswith("Storage") or name.islower()):
            return _Marker(name)
        if (module, name) in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter")):
            return _Marker(name)
        return plan.refuse(_DAMAGED)

    def persistent_load(self, pid: Any) -> Any:
        """Pickles name the storages, which lie beside them."""
        return self._plan.storage(pid)

    def _with_dtype(
        self, storage: Any, at: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
    ) -> _Tensor:
        return self._plan.tensor(storage, at, size, stride, self._dtype(dtype))

    def _dtype(self, marker: Any) -> str:
        name = marker.name if isinstance(marker, _Marker) else "?"
        if name not in ITEM_BYTES:
            self._plan.refuse(f"holds numbers of the kind {name}, which no image network has")
        return name


class _Bounded:
    """A file that is never asked for more bytes than it has: Python makes room for as many as are asked for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, count: int) -> bytes:
        """Exactly so many."""
        if not 0 <= count <= self._left:
            raise EOFError("ran out of bytes")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        """Up to the next line's end."""
        line = self._file.readline()
        self._left -= len(line)
        return line

    def readinto(self, buffer: bytearray) -> int:
        """As much as fits into a buffer that is there already."""
        data = self.read(len(buffer))
        buffer[:] = data
        return len(data)


def _walk_archive(plan: _Plan) -> None:
    """What torch.save writes today: a zip of one pickle and one file for each storage."""
    with ZipFile(plan.path) as archive:
        entries = {one.filename: one for one in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            plan.refuse("is damaged: it holds two parts of one name")
        if sum(one.file_size for one in entries.values()) > max(_TIMES * plan.size, _AT_LEAST):
            plan.refuse("is packed far beyond what weights can be: it may be a decompression bomb")
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            plan.refuse("is a zip archive without tensors in it")
        if any(name.endswith("/constants.pkl") for name in entries):
            plan.refuse("is a TorchScript program, not weights")
        broken = archive.testzip()  # torch does not look at these checksums
        if broken is not None:
            plan.refuse(f"is damaged: the checksum of {broken} does not match")
        root = pickles[0].removesuffix("data.pkl") + "data/"
        plan.stored = {name.removeprefix(root): one.file_size for name, one in entries.items() if name.startswith(root)}
        with archive.open(pickles[0]) as stream:
            walker = _Walker(_Bounded(stream, entries[pickles[0]].file_size), plan)  # pyright: ignore[reportArgumentType]
            plan.require_finite_depth(walker.load())


def _walk_stream(plan: _Plan) -> None:
    """What torch.save wrote before: pickles one after another, then the storages."""
    with plan.path.open("rb") as stream:
        bounded = _Bounded(stream, plan.size)
        magic = _Walker(bounded, plan).load()
        if magic != _MAGIC:
            plan.refuse("is damaged, or not a file of torch.save")
        for _ in range(2):  # the protocol's version, and the byte order and sizes of the machine
            _Walker(bounded, plan).load()
        plan.require_finite_depth(_Walker(bounded, plan).load())


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _encoded(text: str, encoding: str) -> bytes:
    return text.encode({"latin1": "latin1", "utf-8": "utf-8"}[encoding])
