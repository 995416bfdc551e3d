"""An XMP packet -> the packet of the same picture at another size, upright; what described the old file is gone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.dom import minidom
from xml.parsers.expat import ExpatError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIFF, _EXIF, _XMP = (f"http://ns.adobe.com/{name}/1.0/" for name in ("tiff", "exif", "xap"))
_NOTE, _PANORAMA = "http://ns.adobe.com/xmp/note/", "http://ns.google.com/photos/1.0/panorama/"
# A gain map, a film or depths that lie behind the picture in the old file; the thumbnail; what did not fit its packet.
_STALE_SPACES = (
    "http://ns.adobe.com/hdr-gain-map/1.0/",
    "http://ns.apple.com/HDRGainMap/1.0/",
    *(f"http://ns.google.com/photos/1.0/{name}/" for name in ("container", "camera", "depthmap", "image", "audio")),
)
_STALE = {(_XMP, "Thumbnails"), (_NOTE, "HasExtendedXMP")}
_WIDTHS = {(_TIFF, "ImageWidth"), (_EXIF, "PixelXDimension")}
_HEIGHTS = {(_TIFF, "ImageLength"), (_EXIF, "PixelYDimension")}
_HEAD = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>'
_TAIL = b'<?xpacket end="w"?>'

Size = tuple[int, int]
Node = minidom.Element | minidom.Attr


class DamagedXmpError(ValueError):
    """No XMP packet."""


def parse_xmp(packet: bytes) -> minidom.Document:
    """The packet as a tree; what is no plain XML in UTF-8 is damaged."""
    text = packet.rstrip(b"\0 \r\n\t")
    if re.search(rb"<!(DOCTYPE|ENTITY)", text):
        raise DamagedXmpError("it has a document type")
    try:
        text.decode("utf-8")
        return minidom.parseString(text)  # noqa: S318 - see above
    except (ExpatError, UnicodeDecodeError, ValueError) as error:
        raise DamagedXmpError(f"it is no XML: {error}") from None


def fitted_xmp(packet: bytes, before: Size, after: Size, orientation: int) -> bytes:
    """Of an image that was (height, width) `before` and is `after`, turned so."""
    document = parse_xmp(packet)
    try:
        for owner, node in list(_properties(document)):
            _fit(owner, node, before, after, orientation)
        root = document.documentElement
        assert root is not None
        return _HEAD + root.toxml().encode() + _TAIL
    except RecursionError:
        raise DamagedXmpError("it is nested too deeply") from None


def _fit(owner: minidom.Element, node: Node, before: Size, after: Size, orientation: int) -> None:
    key = (node.namespaceURI, node.localName)
    if key in _STALE or key[0] in _STALE_SPACES:
        _remove(owner, node)
    elif key == (_TIFF, "Orientation"):
        _set(node, str(orientation))
    elif key in _WIDTHS:
        _set(node, str(after[1]))
    elif key in _HEIGHTS:
        _set(node, str(after[0]))
    elif key[0] == _PANORAMA and str(key[1]).endswith("Pixels"):
        side = 0 if "Height" in str(key[1]) or "Top" in str(key[1]) else 1
        _scale(node, after[side] / before[side])


def _properties(document: minidom.Document) -> Iterator[tuple[minidom.Element, Node]]:
    """Every attribute and element, with the element that it belongs to."""
    for element in document.getElementsByTagName("*"):
        if isinstance(element.parentNode, minidom.Element):
            yield element.parentNode, element
        for attribute in list(element.attributes.values()):
            yield element, attribute


def _remove(owner: minidom.Element, node: Node) -> None:
    if isinstance(node, minidom.Attr):
        owner.removeAttributeNode(node)
    else:
        owner.removeChild(node)


def _value(node: Node) -> str:
    return node.value if isinstance(node, minidom.Attr) else "".join(one.data for one in _texts(node))


def _texts(element: minidom.Element) -> list[minidom.Text]:
    return [one for one in element.childNodes if isinstance(one, minidom.Text)]


def _set(node: Node, value: str) -> None:
    if isinstance(node, minidom.Attr):
        node.value = value
        return
    while node.firstChild is not None:
        node.removeChild(node.firstChild)
    assert node.ownerDocument is not None
    node.appendChild(node.ownerDocument.createTextNode(value))


def _scale(node: Node, factor: float) -> None:
    if _value(node).strip().isdigit():
        _set(node, str(round(int(_value(node)) * factor)))
