"""A web application -> the same behind a guard: no foreign page may call it, and it sends browsers nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
# The browser itself refuses whatever would be fetched from elsewhere. Gradio's page needs the inline parts.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Addresses by which gradio would fetch things from other servers for a caller.
_FETCHING = ("/gradio_api/proxy=", "/proxy=", "/gradio_api/file=http", "/file=http", "/gradio_api/file/http")


class Guard:
    """Sits before every request."""

    def __init__(self, app: ASGIApp, *, loopback: bool) -> None:
        self._app, self._loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on and add the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reason = self._amiss(scope)
        if reason is not None:
            await PlainTextResponse(reason, 403, HEADERS)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _amiss(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._loopback and _without_port(host) not in LOOPBACK:
            return "This studio answers on this machine only."  # a name that somebody made point here
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "Another page may not use this studio."
        if unquote(scope["path"]).lower().startswith(_FETCHING):
            return "This studio fetches nothing from elsewhere."
        return None


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if port.isdigit() and name else host
