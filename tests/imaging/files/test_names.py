"""Folders are listed whole and in order; names that lead out of a folder are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from imaging.files import inside, list_images
from imaging.refusal import Refusal


def test_folders_are_listed_whole_and_in_order(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/10.jpg", "a.webp", "c/d/e.tif", "b.bmp"]
    for name in [*names, ".hidden.png", ".git/x.png", "notes.txt", "b/.a.png.tmp.host.12", "b/Thumbs.db"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.webp", "b/10.jpg", "b/2.PNG", "b.bmp", "c/d/e.tif"]


def test_linked_folders_are_entered(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"x")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "HR").symlink_to(tmp_path / "real")
    assert list_images(tmp_path / "set") == [tmp_path / "set" / "HR" / "a.png"]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    for folder, reason in (
        (tmp_path, "no images"),
        (tmp_path / "b", "no such folder"),
        (tmp_path / "a.txt", "is a file"),
    ):
        with pytest.raises(Refusal, match=reason):
            list_images(folder)


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/passwd", "C:\\a", "\\\\host\\share", "..\\a", "a\\..\\..\\b", "", "a\0b", "out/a"],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "out").symlink_to(tmp_path)
    with pytest.raises(Refusal):
        inside(chosen, name)


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "a/../b.png", "..a.png", "a..b/c.png", "./x"])
def test_names_that_stay_inside_are_joined(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name
    assert inside(tmp_path, name).resolve().is_relative_to(tmp_path.resolve())


def test_an_address_is_refused_as_such_and_not_as_a_missing_folder() -> None:
    for path, shown in ((Path("s3://bucket/hr"), "s3://bucket/hr"), (Path("gs:/b"), "gs://b")):
        with pytest.raises(Refusal, match="is an address") as caught:
            list_images(path)
        assert caught.value.where == shown
    for path in (Path("C:/images"), Path("nowhere"), Path("a/b:/c")):
        with pytest.raises(Refusal, match="no such folder"):
            list_images(path)
