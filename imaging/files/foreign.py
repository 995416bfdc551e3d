"""The first bytes of a file that is not read -> what it is, and what to do with it."""

from __future__ import annotations

_FRAMES = "take it apart by `ffmpeg -i FILE frames/%06d.png`, give that folder, and join the results again"
_RAW = "develop it with a raw converter (darktable, RawTherapee) to a 16-bit TIFF"
_MAGIC = {
    b"GIF8": ("a GIF file", _FRAMES),
    b"8BPS": ("a Photoshop file", ""),
    b"%PDF": ("a PDF", "draw its pages by `pdftoppm -png FILE page`"),
    b"v/1\x01": ("an OpenEXR file", ""),
    b"#?RADIANCE": ("an HDR file", ""),
    b"\xff\x0a": ("a JPEG XL file", "convert it by `djxl FILE out.png`"),
    b"\0\0\0\x0cJXL ": ("a JPEG XL file", "convert it by `djxl FILE out.png`"),
    b"\x1a\x45\xdf\xa3": ("a video (Matroska or WebM)", _FRAMES),
    b"OggS": ("a video (Ogg)", _FRAMES),
    b"FLV\x01": ("a video (Flash)", _FRAMES),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": ("a video (Windows Media)", _FRAMES),
    b"\0\0\x01\xba": ("a video (MPEG)", _FRAMES),
    b"\0\0\x01\xb3": ("a video (MPEG)", _FRAMES),
}
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
_MOVING_HEIC = (b"hevc", b"hevx")
ANIMATION_CURE = _FRAMES


def container_kind(head: bytes) -> str | None:
    """AVIF or HEIC, of files that begin with a box of that name; animations count as their still kin."""
    brands = _brands(head)
    if brands and brands[0] in (b"avif", b"avis"):
        return "AVIF"
    if brands and brands[0] in (b"mif1", b"msf1"):  # says no more than that there are images
        return "AVIF" if b"avif" in brands or b"avis" in brands else "HEIC"
    return "HEIC" if brands and brands[0] in (*_HEIC, *_MOVING_HEIC) else None


def foreign_kind(head: bytes) -> tuple[str, str] | None:
    """What is not read, in words, and its cure; None where the bytes tell nothing."""
    found = next((named for magic, named in _MAGIC.items() if head.startswith(magic)), None)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "a video (AVI)", _FRAMES
    if head[4:8] == b"ftyp":
        return ("a raw photograph (CR3)", _RAW) if head[8:12] == b"crx " else ("a video (MP4 or MOV)", _FRAMES)
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return "a video (QuickTime)", _FRAMES
    return found


def _brands(head: bytes) -> list[bytes]:
    """The major brand, then the compatible ones, as far as they lie within `head`."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
