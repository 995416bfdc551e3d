"""Hostile files of torch.save: layouts, dtypes and byte counts are refused before a tensor is made."""

from __future__ import annotations

import io
import pickle
import pickletools
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experts.loading.load import load_network
from experts.loading.weights import read_state_file
from experts.spec import ExpertSpec, WeightsSource
from imaging.refusal import Refusal
from imaging.tensors.unpickle import load_plain, load_tensors

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
USUAL = (*FLOATS, torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def made(dtype: torch.dtype, shape: tuple[int, ...] = (3, 4)) -> torch.Tensor | None:
    """Zeros, if torch itself can make and save them."""
    try:
        tensor = torch.zeros(shape, dtype=torch.uint8).to(dtype)
        for zipped in (True, False):
            torch.save(tensor, io.BytesIO(), _use_new_zipfile_serialization=zipped)
    except (RuntimeError, TypeError, NotImplementedError, KeyError, AttributeError):
        return None
    return tensor


ALL_DTYPES = {one for one in vars(torch).values() if isinstance(one, torch.dtype)}
DTYPES = sorted((one for one in ALL_DTYPES if made(one) is not None), key=str)


def saved(folder: Path, document: object, *, zipped: bool = True) -> Path:
    path = folder / "a.pth"
    torch.save(document, path, _use_new_zipfile_serialization=zipped)
    return path


def read(path: Path) -> Any:
    return load_plain(path, cure="fetch it again")


def test_what_networks_and_training_states_hold_is_read_in_both_formats(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3))
    whole = OrderedDict(weight=weight.detach(), turned=torch.randn(5, 6).T, empty=torch.zeros(0, 3))
    vars(whole)["_metadata"] = {"": {"version": 1}}
    document = {"params": whole, "parameter": weight, "view": torch.arange(9)[2:5], "betas": (0.9, 0.99), "step": 7}
    document |= {"none": None, "text": "x", "bytes": b"\0\xff", "size": torch.Size([1, 2]), "nested": [{1: {2, 3}}]}
    for zipped in (True, False):
        found = read(saved(tmp_path, document, zipped=zipped))
        assert torch.equal(found["params"]["turned"], whole["turned"]) and torch.equal(found["parameter"], weight)
        assert torch.equal(found["view"], torch.tensor([2, 3, 4]))
        assert {key: found[key] for key in ("betas", "step", "bytes", "size", "nested")} == {
            key: document[key] for key in ("betas", "step", "bytes", "size", "nested")
        }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_or_refused(tmp_path: Path, dtype: torch.dtype, zipped: bool) -> None:
    path = saved(tmp_path, {"x": made(dtype)}, zipped=zipped)
    if dtype in USUAL:
        assert read(path)["x"].dtype == dtype
        return
    with pytest.raises(Refusal, match="no image network has|holds more than tensors"):
        read(path)


def layouts() -> dict[str, object]:
    dense = torch.eye(4)
    made: dict[str, object] = {
        "coo": dense.to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 2)),
        "bsc": dense.to_sparse_bsc((2, 2)),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "quantised": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
        "meta": torch.empty(1 << 40, device="meta"),
        "complex": torch.zeros(3, dtype=torch.complex64),
        "conjugate": torch.zeros(3, dtype=torch.complex64).conj(),
    }
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(layouts()))
def test_every_other_layout_is_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, {"params": {"weight": layouts()[name]}})
    with pytest.raises(Refusal) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1


def repickled(path: Path, change: bytes, into: bytes) -> Path:
    """The archive with other bytes in its pickle."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            if name.endswith("data.pkl"):
                assert change in data
                data = data.replace(change, into)
            archive.writestr(name, data)
    return path


def a_number(value: int) -> bytes:
    """As a pickle of protocol 2 has it."""
    return pickle.dumps(value, 2)[2:-1]


@pytest.fixture
def little_memory() -> Any:
    """Three gigabytes of addresses beyond those in use: a request for more fails, as on a small machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("old", "new"), [(1234, 1 << 42), (1234, 1 << 20), (617, 1 << 40)])
def test_a_header_that_asks_for_terabytes_is_refused(tmp_path: Path, old: int, new: int) -> None:
    path = saved(tmp_path, {"x": torch.zeros(2, 617)})
    with pytest.raises(Refusal, match="claims|in a storage of"):
        read(repickled(path, a_number(old), a_number(new)))


def test_an_old_file_that_asks_for_terabytes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": torch.zeros(1234)}, zipped=False)
    path.write_bytes(path.read_bytes().replace(a_number(1234), a_number(1 << 42), 1))
    with pytest.raises(Refusal, match="claims"):
        read(path)


def test_an_expanded_tensor_is_counted_by_what_it_would_take(tmp_path: Path) -> None:
    assert read(saved(tmp_path, {"x": torch.zeros(1).expand(1000)}))["x"].shape == (1000,)
    with pytest.raises(Refusal, match="bytes of memory"):
        read(saved(tmp_path, {"x": torch.zeros(1).expand(1 << 40)}))


class Called:
    """Pickles as the call of any function."""

    def __init__(self, function: Any, *given: object) -> None:
        self._call = function, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


CALLS = {
    "a tensor of any size": Called(torch.Tensor, 1 << 20, 1 << 20),
    "bytes by the terabyte": Called(bytearray, 1 << 40),
    "a program": Called(print, "run"),
    "a typed tensor": Called(torch.FloatTensor, 1 << 40),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_nothing_that_a_pickle_calls_is_made(
    tmp_path: Path, name: str, zipped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, {"x": CALLS[name]}, zipped=zipped)
    with pytest.raises(Refusal):
        read(path)
    assert capsys.readouterr().out == ""


def test_containers_without_an_end_are_refused(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["self"] = endless
    many: dict[str, object] = {"x": 1}
    for _ in range(40):
        many = {"a": many, "b": many}
    for document in (endless, many):
        with pytest.raises(Refusal, match="without an end"):
            read(saved(tmp_path, document))


def test_attributes_that_hide_methods_are_refused(tmp_path: Path) -> None:
    document = OrderedDict(x=torch.zeros(1))
    vars(document)["values"] = 5
    with pytest.raises(Refusal):
        read(saved(tmp_path, document))


def test_a_huge_memo_number_takes_no_memory(tmp_path: Path) -> None:
    whole = pickle.dumps({"x": 1}, 2)
    assert "BINPUT" in {code.name for code, *_ in pickletools.genops(whole)}
    (tmp_path / "a.pth").write_bytes(whole.replace(b"q\x00", b"r\xff\xff\xff\x7f", 1))
    with pytest.raises(Refusal):
        read(tmp_path / "a.pth")


def test_a_flipped_bit_in_the_numbers_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()[400:440])] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refusal, match="checksum"):
        read(path)


def test_a_bomb_of_a_zip_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"x": torch.zeros(1)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/9", bytes(200_000_000))
    with pytest.raises(Refusal, match="decompression bomb"):
        read(path)


def test_random_documents_are_read_as_torch_reads_them_or_refused(tmp_path: Path) -> None:
    """Whatever is accepted is what torch.load makes of it; nothing but a Refusal is raised."""
    random, accepted = np.random.default_rng(3), 0
    for _ in range(150):
        document: dict[str, object] = {}
        for key in range(int(random.integers(1, 4))):
            dtype = DTYPES[random.integers(len(DTYPES))]
            shape = tuple(int(side) for side in random.integers(0, 5, random.integers(0, 4)))
            tensor = made(dtype, shape)
            assert tensor is not None
            if dtype.is_floating_point and dtype.itemsize > 1 and random.integers(5) == 0:
                tensor = tensor.to_sparse()
            document[str(key)] = tensor
        path = saved(tmp_path, document, zipped=bool(random.integers(2)))
        usual = all(torch.is_tensor(one) and one.dtype in USUAL and not one.is_sparse for one in document.values())
        try:
            found = load_tensors(path, cure="fetch it again")
        except Refusal:
            assert not usual
            continue
        accepted += 1
        assert usual and {key: str(one) for key, one in found.items()} == {key: str(document[key]) for key in document}
    assert 5 < accepted < 145


@pytest.mark.parametrize("name", ["coo", "complex", "nested", "quantised"])
@pytest.mark.filterwarnings("ignore")
def test_as_an_expert_they_are_refused_too(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, {"weight": layouts()[name]})
    spec = ExpertSpec(name="x", weights=(WeightsSource(file=str(path)),))
    with pytest.raises(Refusal):
        load_network(read_state_file(path), spec)
