"""The result store and the page's own files -> the routes by which viewer.js asks for them."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response

if TYPE_CHECKING:
    from fusion.studio.jobs.result_store import ResultStore
    from fusion.studio.jobs.result_view import ResultView

_Thing = TypeVar("_Thing")

_SCRIPT, _STYLE = "text/javascript", "text/css"
STATIC = {"viewer.js": _SCRIPT, "viewer_parts.js": _SCRIPT, "viewer.css": _STYLE, "page.css": _STYLE}
_RESULTS = "/studio/results"
# A result never changes under its name, so the browser may keep its pictures; nobody between may.
_KEEP = {"Cache-Control": "private, max-age=3600"}


def read_static(name: str) -> str:
    """One of the page's own files."""
    return (resources.files("fusion.studio") / "static" / name).read_text(encoding="utf-8")


class Routes:
    """Answers by the result store's names and by numbers: nothing in an address is ever taken for a path."""

    def __init__(self, results: ResultStore) -> None:
        self._results = results

    def add_to(self, app: FastAPI) -> None:
        """Register them."""
        app.add_api_route("/studio/static/{name}", self.static)
        app.add_api_route(f"{_RESULTS}/{{name}}", self.result)
        app.add_api_route(f"{_RESULTS}/{{name}}/picture/{{index}}", self.picture)
        app.add_api_route(f"{_RESULTS}/{{name}}/map/{{index}}", self.coloured_map)
        app.add_api_route(f"{_RESULTS}/{{name}}/pixel", self.pixel)
        app.add_api_route(f"{_RESULTS}/{{name}}/file/{{index}}", self.file)

    def static(self, name: str) -> Response:
        """The viewer's script and styles."""
        if name not in STATIC:
            raise HTTPException(404, "There is no such file.")
        headers = {"Cache-Control": "no-cache"}  # after an update the new script is seen at once
        return Response(read_static(name), media_type=STATIC[name], headers=headers)

    def result(self, name: str) -> Response:
        """What there is to see of a result."""
        return JSONResponse(self._find(name).describe(f"{_RESULTS}/{name}"))

    def picture(self, name: str, index: int) -> Response:
        """One of its pictures."""
        result = self._find(name)
        _pick(result.picture_names, index)
        return Response(result.picture_png(index), media_type="image/png", headers=_KEEP)

    def coloured_map(self, name: str, index: int) -> Response:
        """One of its maps."""
        result = self._find(name)
        _pick(result.overlays, index)
        return Response(result.map_png(index), media_type="image/png", headers=_KEEP)

    def pixel(self, name: str, x: int, y: int) -> Response:
        """The values at one of its pixels."""
        try:
            return JSONResponse(self._find(name).pixel_values(x, y))
        except IndexError as error:
            raise HTTPException(404, str(error)) from None

    def file(self, name: str, index: int) -> Response:
        """The output or the record beside it, byte for byte."""
        path = _pick(self._find(name).files, index)
        return FileResponse(path, filename=path.name, content_disposition_type="attachment")

    def _find(self, name: str) -> ResultView:
        result = self._results.get(name)
        if result is None:
            raise HTTPException(404, "This image is no longer kept; run it again.")
        return result


def _pick(things: tuple[_Thing, ...], index: int) -> _Thing:
    # Without this -1 would be answered by the last one.
    if not 0 <= index < len(things):
        raise HTTPException(404, "There is no such part of this image.")
    return things[index]
