"""The caches tab: what fusion could gain from a cache, and its items one by one."""

from __future__ import annotations

from collections.abc import Iterator  # noqa: TC003 - gradio reads the annotations of what it calls
from typing import TYPE_CHECKING, Any

import gradio as gr

from fusion.studio.uploads import user_message
from fusion.studio.views.cards import card, refused_card
from fusion.studio.views.events import EVENT_OPTIONS, POLL_S, cancel_handler, owner_of
from fusion.studio.views.headroom import HeadroomStatus, find_headroom, headroom_page
from fusion.studio.views.items import CheckStatus, check_items, crc_state, item_page, items_table, list_items
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from fusion.studio.folders import Folders
    from fusion.studio.jobs.job_queue import JobQueue
    from fusion.studio.views.items import ItemRow

_PAGE = 100  # items in the table at a time: checking a page reads every byte of them
# One listener on the table, as gradio replaces its rows: it passes on the item that a button stands for.
_CHOOSE = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-item]');
  if (button) trigger('click', {item: button.dataset.item});
});"""


def _item_of(event: gr.EventData) -> str | None:
    """What the table's listener passes on; a forged call may lack it."""
    try:
        return str(event.item)
    except (AttributeError, TypeError):
        return None


class CacheTab:
    """The tab's event handlers; what was checked is remembered until the studio ends."""

    def __init__(self, folders: Folders, queue: JobQueue) -> None:
        self._folders, self._queue = folders, queue
        self._crc: dict[str, dict[str, str]] = {}

    def build(self, tab: gr.Tab) -> None:
        """Controls, charts, and a table that is read when the tab is opened."""
        names = list(self._folders.caches())
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=270):
                cache = gr.Dropdown(names, value=names[0] if names else None, label="Cache", elem_id="cache")
                with gr.Row():
                    analyse = gr.Button("Analyse", variant="primary", elem_id="analyse", min_width=90)
                    cancel = gr.Button("Cancel", min_width=90)
                wanted = gr.Textbox(label="Items whose name or source contains", placeholder="all")
                page = gr.Number(1, label=f"Page ({_PAGE} items each)", precision=0, minimum=1)
                check = gr.Button("Check these items' crc", elem_id="check")
                status = gr.HTML()
            with gr.Column(scale=5, min_width=320):
                charts = gr.HTML("<p>What fusion could gain from this cache: press Analyse.</p>", elem_id="charts")
                items = gr.HTML(elem_id="items", js_on_load=_CHOOSE)
                item = gr.HTML("<p>Choose an item to see the images of its experts.</p>", elem_id="item")
        choice = [cache, wanted, page]
        analyse.click(self.analyse, [cache], [status, charts], **EVENT_OPTIONS)
        check.click(self.check, choice, [status, items], **EVENT_OPTIONS)
        cancel.click(cancel_handler(self._queue), None, None, **EVENT_OPTIONS)
        items.click(self.show, choice, [item, items], **EVENT_OPTIONS)
        for event in (tab.select, *(one.change for one in choice)):
            event(self.table, choice, [status, items], **EVENT_OPTIONS)
        cache.focus(lambda: gr.update(choices=list(self._folders.caches())), None, cache, **EVENT_OPTIONS)

    def table(self, cache: str, wanted: str, page: float) -> tuple[Any, Any]:
        """A page of items."""
        try:
            return "", self._table(cache, self._rows(cache, wanted, page))
        except Refusal as refusal:
            return refused_card(user_message(refusal)), ""

    def analyse(self, cache: str, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        """The headroom, as a job in the queue."""
        try:
            folder = self._folders.cache(cache)
            job = self._queue.submit(owner_of(request), lambda job: find_headroom(folder, job))
        except Refusal as refusal:
            yield refused_card(user_message(refusal)), gr.skip()
            return
        while not job.finished.wait(POLL_S):
            ahead = self._queue.jobs_before(job)
            seconds = job.status.seconds if isinstance(job.status, HeadroomStatus) else 0.0
            step = f"{ahead} jobs before yours" if ahead else f"analysing {cache}: {seconds:.0f} s"
            yield card("Headroom", [f"<p>{step} &hellip;</p>"]), gr.skip()
        if job.refusal is not None:
            yield refused_card(user_message(job.refusal)), gr.skip()
        elif job.state == "done" and isinstance(job.status, HeadroomStatus) and job.status.found is not None:
            yield "", headroom_page(job.status.found)
        else:
            yield card("Cancelled", []), gr.skip()

    def check(self, cache: str, wanted: str, page: float, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        """Every byte of the items shown, as a job in the queue."""
        try:
            rows = self._rows(cache, wanted, page)
            crc = self._crc.setdefault(cache, {})
            job = self._queue.submit(owner_of(request), lambda job: check_items(rows, crc, job))
        except Refusal as refusal:
            yield refused_card(user_message(refusal)), gr.skip()
            return
        over = False
        while not over:
            over = job.finished.wait(POLL_S)
            checked, total = job.status if isinstance(job.status, CheckStatus) else (0, len(rows))
            damaged = sum(state.startswith("damaged") for state in crc.values())
            title = {"cancelled": "Cancelled", "done": "Checked"}.get(job.state, "Checking")
            yield card(title, [f"<p>{checked} of {total} items; {damaged} damaged.</p>"]), self._table(cache, rows)

    def show(self, cache: str, wanted: str, page: float, event: gr.EventData) -> tuple[Any, Any]:
        """The chosen item; its crc is checked as well."""
        try:
            rows = self._rows(cache, wanted, page)
            chosen = _item_of(event)
            row = next((one for one in rows if one.id == chosen and one.entry is not None), None)
            if row is None:
                raise Refusal("there is no such item here", where="items", cure="choose one from the table")
            self._crc.setdefault(cache, {})[row.id] = crc_state(row.path)
            return item_page(self._folders.cache(cache), row), self._table(cache, rows)
        except Refusal as refusal:
            return refused_card(user_message(refusal)), gr.skip()

    def _rows(self, cache: str, wanted: str, page: float) -> list[ItemRow]:
        root = self._folders.cache_root
        assert root is not None
        first = (max(1, int(page or 1)) - 1) * _PAGE  # an emptied field is None
        return list_items(self._folders.cache(cache), root, wanted or "")[first : first + _PAGE]

    def _table(self, cache: str, rows: list[ItemRow]) -> str:
        return items_table(rows, self._crc.get(cache, {}))
