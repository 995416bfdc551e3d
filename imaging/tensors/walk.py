"""A pickled file of tensors -> nothing, or a refusal: what it would make is looked through before any of it is made.

The pickle is walked with harmless stand-ins for what it calls: layouts, dtypes, shapes and bytes are known afterwards,
no tensor is. torch's own unpickler, which runs after this, would make a tensor of any size, sparse or complex ones, or
bytes by the terabyte.
"""

from __future__ import annotations

from collections import OrderedDict
from pickle import _Unpickler  # pyright: ignore[reportPrivateUsage] # the one in C makes room for any memo number
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import ZipFile, is_zipfile

from imaging.refusal import Refusal
from imaging.tensors.plan import AT_LEAST, DAMAGED, ITEM_BYTES, TIMES, UNWANTED, Marker, Plan, TensorClaim

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first before its files were zip archives


def require_plain_tensors(path: Path, *, cure: str) -> None:
    """Refuse a file that torch.load would make anything else of than dense tensors of its own size and plain values."""
    try:
        plan = Plan(path, cure, path.stat().st_size)
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


class _Walker(_Unpickler):
    """Reads a pickle; what torch's rebuilding functions would make is only noted."""

    def __init__(self, file: _Bounded, plan: Plan) -> None:
        super().__init__(file, encoding="utf-8")
        self._plan = plan

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name that tensors are made with; any other name is refused."""
        plan = self._plan
        if module == "torch._utils" and name in UNWANTED:
            plan.refuse(f"holds {UNWANTED[name]}, which no image network has")
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
            return Marker(name)
        if (module, name) in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter")):
            return Marker(name)
        return plan.refuse(DAMAGED)

    def persistent_load(self, pid: Any) -> Any:
        """Pickles name the storages, which lie beside them."""
        return self._plan.storage(pid)

    def _with_dtype(
        self, storage: Any, at: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
    ) -> TensorClaim:
        return self._plan.tensor(storage, at, size, stride, self._dtype(dtype))

    def _dtype(self, marker: Any) -> str:
        name = marker.name if isinstance(marker, Marker) else "?"
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


def _walk_archive(plan: Plan) -> None:
    """What torch.save writes today: a zip of one pickle and one file for each storage."""
    with ZipFile(plan.path) as archive:
        entries = {one.filename: one for one in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            plan.refuse("is damaged: it holds two parts of one name")
        if sum(one.file_size for one in entries.values()) > max(TIMES * plan.size, AT_LEAST):
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


def _walk_stream(plan: Plan) -> None:
    """What torch.save wrote before: pickles one after another, then the storages."""
    with plan.path.open("rb") as stream:
        bounded = _Bounded(stream, plan.size)
        magic = _Walker(bounded, plan).load()
        if magic != _MAGIC:
            plan.refuse("is damaged, or not a file of torch.save")
        for _ in range(2):  # the protocol's version, and the byte order and sizes of the machine
            _Walker(bounded, plan).load()
        plan.require_finite_depth(_Walker(bounded, plan).load())


def _encoded(text: str, encoding: str) -> bytes:
    return text.encode({"latin1": "latin1", "utf-8": "utf-8"}[encoding])
