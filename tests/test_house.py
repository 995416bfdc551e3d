"""The house's own rules, held by reading its files: which room may enter which, how large rooms and files are."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = {"imaging", "experts", "cache_tools", "fusion", "benchmarks", "train", "infer", "championship_sr"}
MAY_IMPORT = {
    "imaging": set(),
    "experts": {"imaging"},
    "cache_tools": {"imaging", "experts"},
    "fusion": {"imaging", "cache_tools"},
}
ROOM_FILES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))
FRONT_DOORS = [path for path in ROOM_FILES if path.name == "__main__.py"] + [ROOT / "train.py", ROOT / "infer.py"]
PACKAGE = sorted((ROOT / "championship_sr").rglob("*.py"))  # a front door as well: it offers what the others do
PRODUCT = sorted({*ROOM_FILES, *FRONT_DOORS, *PACKAGE})

MOST_FILES, MOST_LINES = 17, 260
# Of different rooms, which each need the word: a file's header and an item's, an image's source and a batch's.
SHARED_CLASS_NAMES = {"Header", "ResidualBlock", "Source", "Stage"}
_MODULE_NAME = re.compile(r"[a-z_]\w*(\.\w+)*")


def imported_modules(tree: ast.AST) -> set[str]:
    """Every module that a file names to import it, by statement or by `import_module` and `__import__`.

    What those are given is often a constant or an entry of a table elsewhere in the file. So in a file that uses them
    every string that could be a module's name counts.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    if _imports_by_name(tree):
        strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        names |= {one for one in strings if isinstance(one, str) and _MODULE_NAME.fullmatch(one)}
    return names


def _imports_by_name(tree: ast.AST) -> bool:
    called = {"import_module", "__import__"}
    return any(
        (isinstance(node, ast.Name) and node.id in called)
        or (isinstance(node, ast.Attribute) and node.attr in called)
        or (isinstance(node, ast.alias) and node.name in called)
        for node in ast.walk(tree)
    )


def rooms_of(modules: set[str]) -> set[str]:
    """The rooms, front doors and benchmarks among them."""
    return {name.partition(".")[0] for name in modules} & TOP


def parse(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def short(path: Path) -> str:
    """Its name within the house."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [path for path in ROOM_FILES if path not in FRONT_DOORS], ids=short)
def test_imports_go_one_way(path: Path) -> None:
    """Only front doors join rooms, open `benchmarks` or call train.py and infer.py."""
    room = path.relative_to(ROOT).parts[0]
    assert rooms_of(imported_modules(parse(path))) - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize(
    "code",
    [
        "import infer",
        "from benchmarks.cache import all",
        "def f():\n    from train import main",
        "import importlib\nimportlib.import_module('infer')",
        "from importlib import import_module as load\nload('benchmarks.native.cost')",
        "from importlib import import_module\nJOINT = 'infer'\nimport_module(JOINT)",
        "from importlib import import_module\nTABLE = {'serve': ('train', 'words')}\nimport_module(TABLE['serve'][0])",
        "__import__('experts.open')",
    ],
)
def test_every_way_to_import_is_seen(code: str) -> None:
    assert rooms_of(imported_modules(ast.parse(code))) & {"train", "infer", "benchmarks", "experts"}


@pytest.mark.parametrize("code", ["NAME = 'infer'", "from importlib import import_module\nimport_module('pyiqa')"])
def test_names_that_are_not_imported_do_not_count(code: str) -> None:
    assert rooms_of(imported_modules(ast.parse(code))) == set()


def test_nothing_imports_a_front_door_of_a_room() -> None:
    """What two need stands in a module of its own: importing a `__main__` brings a whole command line along."""
    files = [path for path in PRODUCT if path not in PACKAGE]  # its console script hands over to their command lines
    found = {short(path): name for path in files for name in imported_modules(parse(path)) if ".__main__" in name}
    assert found == {}


def test_rooms_and_files_have_a_human_size() -> None:
    folders: dict[Path, int] = defaultdict(int)
    for path in PRODUCT:
        folders[path.parent] += 1
    assert {short(folder): count for folder, count in folders.items() if count > MOST_FILES} == {}
    lines = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PRODUCT}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in PRODUCT:
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(short(path))
    shared = {name: where for name, where in places.items() if len(where) > 1}
    assert {name: where for name, where in shared.items() if name not in SHARED_CLASS_NAMES} == {}


def test_every_file_says_what_it_does() -> None:
    silent = [short(path) for path in ROOM_FILES if not ast.get_docstring(parse(path))]
    assert silent == []


@pytest.mark.parametrize("door", ["experts.__main__", "cache_tools.__main__"])
def test_commands_start_without_spandrel(door: str) -> None:
    """Its forty architectures take more than a second, which only a command that opens an expert has to wait for."""
    seen: dict[str, str] = {door: ""}
    waiting = [door]
    while waiting:
        name = waiting.pop()
        for other in imported_at_start(name) - seen.keys():
            seen[other] = name
            waiting.append(other)
    assert len(seen) > 20
    assert {name: by for name, by in seen.items() if name.partition(".")[0] == "spandrel"} == {}


def imported_at_start(module: str) -> set[str]:
    """The modules that importing one of ours imports at once, its packages among them; of others, none."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return set()
    names = {module.rpartition(".")[0]} - {""}
    for node in parse(file).body:  # not those of functions, nor under `if TYPE_CHECKING`
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= imported_modules(ast.Module([node], []))
    return names
