"""Finished images on the shelf and the page's own files -> the addresses by which the viewer asks for them."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response

if TYPE_CHECKING:
    from fusion.studio.jobs.result_store import ResultStore
    from fusion.studio.jobs.result_view import ResultView

_SCRIPT, _STYLE = "text/javascript", "text/css"
STATIC = {"viewer.js": _SCRIPT, "viewer_parts.js": _SCRIPT, "viewer.css": _STYLE, "page.css": _STYLE}
_SHOWN = "/studio/shown"
_KEEP = {"Cache-Control": "private, max-age=3600"}


def read_static(name: str) -> str:
    """One of the page's own files."""
    return (resources.files("fusion.studio") / "static" / name).read_text(encoding="utf-8")


class Addresses:
    """Answers by names that the shelf gave out and by numbers: nothing in an address is ever taken for a path."""

    def __init__(self, shelf: ResultStore) -> None:
        self._shelf = shelf

    def add_to(self, app: FastAPI) -> None:
        """Make them known."""
        app.add_api_route("/studio/static/{name}", self.static)
        app.add_api_route(f"{_SHOWN}/{{name}}", self.shown)
        app.add_api_route(f"{_SHOWN}/{{name}}/picture/{{index}}", self.picture)
        app.add_api_route(f"{_SHOWN}/{{name}}/map/{{index}}", self.coloured_map)
        app.add_api_route(f"{_SHOWN}/{{name}}/pixel", self.pixel)
        app.add_api_route(f"{_SHOWN}/{{name}}/file/{{index}}", self.file)

    def static(self, name: str) -> Response:
        """The viewer's script and styles."""
        if name not in STATIC:
            raise HTTPException(404, "There is no such file.")
        return Response(read_static(name), media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    def shown(self, name: str) -> Response:
        """What there is to see of an image."""
        return JSONResponse(self._find(name).describe(f"{_SHOWN}/{name}"))

    def picture(self, name: str, index: int) -> Response:
        """One of its pictures."""
        one = self._find(name)
        _pick(one.picture_names, index)
        return Response(one.picture_png(index), media_type="image/png", headers=_KEEP)

    def coloured_map(self, name: str, index: int) -> Response:
        """One of its maps."""
        one = self._find(name)
        _pick(one.listed, index)
        return Response(one.map_png(index), media_type="image/png", headers=_KEEP)

    def pixel(self, name: str, x: int, y: int) -> Response:
        """The figures at one of its pixels."""
        try:
            return JSONResponse(self._find(name).reading(x, y))
        except IndexError as error:
            raise HTTPException(404, str(error)) from None

    def file(self, name: str, index: int) -> Response:
        """The file to keep, or the record beside it, byte for byte."""
        path = _pick(self._find(name).files, index)
        return FileResponse(path, filename=path.name, content_disposition_type="attachment")

    def _find(self, name: str) -> ResultView:
        shown = self._shelf.get(name)
        if shown is None:
            raise HTTPException(404, "This image is no longer kept; run it again.")
        return shown


def _pick(things: tuple[Any, ...], index: int) -> Any:
    if not 0 <= index < len(things):
        raise HTTPException(404, "There is no such part of this image.")
    return things[index]
