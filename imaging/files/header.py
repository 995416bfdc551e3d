"""An image file -> its format and upright size, read from the header alone; what cannot be used is refused."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from imaging.files.contradictions import require_enough_content, require_size, webp_size
from imaging.files.deep import TiffHeader, tiff_header
from imaging.files.foreign import ANIMATION_CURE, container_kind, foreign_kind
from imaging.files.heif import open_avif, open_heic
from imaging.files.picture import MAX_PIXELS
from imaging.files.png import chunks
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# Opened by class and not by Image.open, whose size limit is a setting of the whole process.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
}
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
}
KINDS = "PNG, TIFF, JPEG, WebP, BMP, AVIF or HEIC"
_INTACT = "replace it with an intact copy"
_ORIENTATION = 0x0112


def image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) as `read_picture` would return them, without decoding the pixels."""
    try:
        with path.open("rb") as file:
            kind = detect_format(path, file.read(32))
            with refusing(path, kind):
                return open_header(path, kind, file, max_pixels).size
    except OSError as error:
        raise _unreadable(path, error) from None


def read_bytes(path: Path) -> bytes:
    """The whole file; missing, unreadable and empty ones are refused."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not data:
        raise Refusal("is empty (zero bytes)", where=path, cure=_INTACT)
    return data


def _unreadable(path: Path, error: OSError) -> Refusal:
    if isinstance(error, FileNotFoundError):
        return Refusal("no such file", where=path, cure="check the path")
    return Refusal(f"cannot be read ({error.strerror})", where=path, cure="give a readable image file")


def detect_format(path: Path, head: bytes) -> str:
    """The format, by the file's first bytes; its suffix does not matter."""
    if not head:
        raise Refusal("is empty (zero bytes)", where=path, cure=_INTACT)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    container = container_kind(head)
    if container is not None:
        return container
    foreign, cure = foreign_kind(head) or ("", "")
    reason = f"is {foreign}, which is not supported" if foreign else "is not an image"
    raise Refusal(reason, where=path, cure=cure or f"give a {KINDS} file")


@contextmanager
def refusing(path: Path, kind: str) -> Generator[None]:
    """Decoders fail in dozens of ways on damaged files; each means the same to the user: this file cannot be used."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        reason = str(error)[:120] or "no reason"
        raise Refusal(
            f"cannot be decoded as {kind} ({type(error).__name__}: {reason})", where=path, cure=_INTACT
        ) from error


@dataclass(frozen=True)
class Header:
    """A file opened but not decoded."""

    kind: str
    height: int  # as stored
    width: int
    orientation: int
    image: ImageFile.ImageFile | None  # None for TIFFs, which `tiff` describes, and for HEIC
    tiff: TiffHeader | None = None
    heic: Any = None  # pillow-heif's image

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), upright."""
        return (self.width, self.height) if self.orientation in (5, 6, 7, 8) else (self.height, self.width)

    @property
    def info(self) -> dict[str, Any]:
        """What the decoder tells beside the pixels."""
        opened = self.heic if self.image is None else self.image
        return {str(key): value for key, value in opened.info.items()}


def open_header(path: Path, kind: str, file: BinaryIO, max_pixels: int) -> Header:
    """Read the headers before the pixels; animations and kinds that cannot be read faithfully are refused.

    So is what has no or more than `max_pixels`: by sizes that the file gives alike wherever it gives one.
    """
    if kind == "TIFF":
        tiff = tiff_header(file, where=path)
        # Samples beyond four take memory as pixels do.
        check_size(path, (tiff.height, tiff.width), max_pixels * 4 // max(tiff.samples, 4))
        return Header(kind, tiff.height, tiff.width, tiff.orientation, None, tiff)
    if kind == "HEIC":
        heic = open_heic(path, file)
        width, height = heic.size
        check_size(path, (height, width), max_pixels)
        return Header(kind, height, width, 1, None, heic=heic)
    claimed = webp_size(file, path) if kind == "WebP" else None
    if claimed is not None:  # before Pillow takes memory for it
        check_size(path, claimed, max_pixels)
    file.seek(0)
    image = open_avif(path, file) if kind == "AVIF" else _READERS[kind](file)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise Refusal(f"is animated ({frames} frames)", where=path, cure=ANIMATION_CURE)
    width, height = image.size
    check_size(path, (height, width), max_pixels)
    require_size((height, width), claimed or (height, width), path)
    require_enough_content(kind, file, image, path)
    return Header(kind, height, width, _orientation(path, kind, file, image), image)


def _orientation(path: Path, kind: str, file: BinaryIO, image: ImageFile.ImageFile) -> int:
    if kind == "BMP":
        return 1
    if kind != "PNG":
        return _valid(image.getexif().get(_ORIENTATION))
    # Pillow would decode the whole PNG to find EXIF that comes after the pixels.
    position = file.tell()
    found = dict(chunks(file, where=path, pixels=False))
    file.seek(position)
    exif = Image.Exif()
    exif.load(found.get(b"eXIf", b""))
    return _valid(exif.get(_ORIENTATION))


def _valid(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    """Refuse an image without pixels, or with more than `max_pixels`."""
    height, width = size
    if height < 1 or width < 1:
        raise Refusal(f"has no pixels ({height}x{width})", where=path, cure=_INTACT)
    if height * width > max_pixels:
        raise Refusal(
            f"claims {width}x{height} pixels, more than the limit of {max_pixels:,}: it may be a decompression bomb",
            where=path,
            cure="cut it into smaller images, or raise max_pixels if you trust it",
        )
