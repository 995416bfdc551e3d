"""The JSON by which a page calls one of its events -> nothing, or in one line why it cannot be such a call.

gradio hands whatever was sent to the handlers: a text where a number belongs would end in a traceback in the console.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.components import Component

from imaging.names import valid_text

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_BODY, LONGEST_TEXT = 1 << 20, 10_000
_SESSION = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_GREATEST = float(1 << 53)  # of whole numbers that a page's script can send
_MOST_ENTRIES = 1000  # of a list: images, experts, runs
_NESTED = 12  # levels; a page sends two


class CallCheck:
    """Knows the page's events and what their inputs can be."""

    def __init__(self, page: gr.Blocks) -> None:
        self._page = page

    def __call__(self, body: bytes) -> str | None:
        """Why the call is refused; None where it is as the page itself would send it."""
        if len(body) > LONGEST_BODY:
            return "The call is too long."
        try:
            call = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return "The call is not JSON."
        if not isinstance(call, dict):
            return "The call is not a JSON object."
        return self._trouble_of(call)

    def _trouble_of(self, call: dict[str, Any]) -> str | None:
        if not _is_plain(call):
            return "The call holds text that is no Unicode, or is nested too deeply."
        session, index, data = call.get("session_hash"), call.get("fn_index"), call.get("data")
        if not isinstance(session, str) or not _SESSION.fullmatch(session):
            return "The call names no session."
        if not _is_whole(index) or index not in self._page.fns:
            return "The call names no event of this page."
        trigger = call.get("trigger_id")
        if trigger is not None and not (_is_whole(trigger) and trigger in self._page.blocks):
            return "The call names no part of this page."
        others = (call.get("event_id"), call.get("oauth_token"), call.get("batched"), call.get("simple_format"))
        if any(others) or not isinstance(call.get("event_data"), (dict, type(None))):
            return "The call is not as this page makes it."
        inputs = self._page.fns[index].inputs
        if not isinstance(data, list) or len(data) != len(inputs):
            return f"The call does not have the event's {len(inputs)} values."
        for block, value in zip(inputs, data, strict=True):
            if not _fits(block, value):
                return f"The value of '{getattr(block, 'label', None) or 'a part'}' is none that it can have."
        return None


def refuse_quietly(page: gr.Blocks) -> None:
    """What a component itself refuses (a choice that is gone) is told to the visitor, not traced in the console."""
    for block in page.blocks.values():
        if isinstance(block, Component):
            vars(block)["preprocess"] = _quiet(block.preprocess)


def _quiet(preprocess: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(payload: Any) -> Any:
        try:
            return preprocess(payload)
        except Exception as error:  # components fail in their own ways on values that are none of theirs
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise gr.Error(first[:200], print_exception=False) from None

    return checked


def _refuse_constant(_name: str) -> float:
    raise ValueError("JSON has no such number")


def _is_plain(value: object, depth: int = 0) -> bool:
    """Valid text everywhere, and no deeper than a page nests."""
    if depth > _NESTED:
        return False
    if isinstance(value, dict):
        return all(_is_plain(one, depth + 1) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return all(_is_plain(one, depth + 1) for one in value)
    return not isinstance(value, str) or valid_text(value) == value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(block: object, value: Any) -> bool:
    """Whether the component could have sent it."""
    match block:
        case gr.File():
            return value is None or (_is_list(value) and all(map(_is_upload, value)))
        case gr.CheckboxGroup():
            return _is_list(value) and all(isinstance(one, str) for one in value)
        case gr.Checkbox():
            return isinstance(value, bool)
        case gr.Slider():
            return _is_number(value) and block.minimum <= value <= block.maximum
        case gr.Number():
            return value is None or (_is_number(value) and abs(value) <= _GREATEST)
        case gr.Radio():
            return isinstance(value, str) and len(value) <= LONGEST_TEXT
        case gr.Dropdown() | gr.Textbox():
            return value is None or (isinstance(value, str) and len(value) <= LONGEST_TEXT)
        case _:
            return value is None


def _is_list(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_ENTRIES


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_upload(value: object) -> bool:
    """As the upload route answered; whether the path is one of an upload is checked where it is read."""
    if not isinstance(value, dict) or not isinstance(value.get("path"), str) or "\0" in value["path"]:
        return False
    texts = all(isinstance(value.get(key), (str, type(None))) for key in ("url", "orig_name", "mime_type"))
    size, meta = value.get("size"), value.get("meta")
    return texts and (size is None or _is_whole(size)) and isinstance(meta, (dict, type(None)))
