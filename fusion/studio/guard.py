"""A web application -> the same behind a guard: no foreign page may call it, and it takes in uploaded files only.

A mounted gradio page does not check uploads by itself: a forged request could name any file of this machine, or an
address elsewhere, where an uploaded file is expected.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from fusion.studio.calls import LONGEST_BODY
from imaging.names import printable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send


log = logging.getLogger(__name__)


def accept_uploads_only(page: gr.Blocks) -> None:
    """Every component of the page checks a file's path before it reads the file."""
    page.has_launched = True  # from now on gradio's own check is made, too
    for block in page.blocks.values():
        # An attribute of the instance: a subclass would need a frontend of its own.
        accept = block.async_move_resource_to_block_cache
        vars(block)["async_move_resource_to_block_cache"] = partial(_accept_upload, accept)


async def _accept_upload(accept: Callable[[Any], Awaitable[str | None]], path: str | Path | None) -> str | None:
    folder = Path(get_upload_folder()).resolve()
    if path is None or not Path(path).resolve().is_relative_to(folder):
        raise gr.Error("Only files that were uploaded here are accepted.", print_exception=False)
    return await accept(path)


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


# What the page itself posts to. gradio has more, for pages that are shared, recorded or edited.
_CALL, _POSTS = "/gradio_api/queue/join", ("/gradio_api/upload", "/gradio_api/cancel", "/gradio_api/reset")


class Guard:
    """Sits before every request; `check` says of the body of a call why it is none of the page's."""

    def __init__(self, app: ASGIApp, check: Callable[[bytes], str | None], *, loopback: bool) -> None:
        self._app, self._check, self._loopback = app, check, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on and add the headers."""
        if scope["type"] != "http":  # start and end of the application: the page opens no web sockets
            await self._app(scope, receive, send)
            return
        reason = self._reason_to_refuse(scope)
        if reason is not None:
            await PlainTextResponse(reason, 403, HEADERS)(scope, receive, send)
            return

        if scope["method"] == "POST" and scope["path"] == _CALL:
            body = await _body_of(receive)
            reason = self._check(body)
            if reason is not None:
                log.warning("a malformed call was refused: %s", reason)
                await PlainTextResponse(reason, 400, HEADERS)(scope, receive, send)
                return
            receive = _replaying(body, receive)
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's own answer; what it breaks on is told in one line, here and in the console."""
        started = failed = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started, failed
            if message["type"] == "http.response.start":
                # Held back: the exception that follows says what it was.
                failed = message["status"] == 500
                started = started or not failed
                MutableHeaders(scope=message).update(HEADERS)
            if not failed:
                await send(message)

        trouble = "no answer"
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # a request from anywhere may break anything behind
            if started:  # too late to answer otherwise: the connection ends
                log.warning("%s: the answer broke off (%s)", printable(scope["path"]), type(error).__name__)
                return
            failed, trouble = True, type(error).__name__
        if failed:
            log.warning("%s: a request could not be answered (%s)", printable(scope["path"]), trouble)
            await PlainTextResponse("The request could not be understood.", 400, HEADERS)(scope, receive, send)

    def _reason_to_refuse(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # DNS rebinding: a foreign page's own host name, made to resolve to this machine, would pass as same origin.
        if self._loopback and _without_port(host) not in LOOPBACK:
            return "This studio answers on this machine only."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "Another page may not use this studio."
        if unquote(scope["path"]).lower().startswith(_FETCHING):
            return "This studio fetches nothing from elsewhere."
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return "This studio is only asked and called."
        if scope["method"] == "POST" and scope["path"] not in (_CALL, *_POSTS):
            return "This studio has nothing to call at this address."
        return None


async def _body_of(receive: Receive) -> bytes:
    """The whole body, or as much of it as shows that it is too long."""
    body = b""
    while len(body) <= LONGEST_BODY:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, then whatever follows (the client's leaving)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if port.isdigit() and name else host
