"""The caches tab: what fusion could gain from a cache, and its items one by one."""

from __future__ import annotations

from collections.abc import Iterator  # noqa: TC003 - gradio reads the annotations of what it calls
from typing import TYPE_CHECKING, Any

import gradio as gr

from fusion.studio.uploads import sentence
from fusion.studio.views.cards import card, refused_card
from fusion.studio.views.headroom import HeadroomNews, find_headroom, headroom_page
from fusion.studio.views.items import check_items, crc_state, item_page, items_table, list_items
from fusion.studio.views.upscale_tab import PRIVATE, owner_of, stopper
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from fusion.studio.folders import Folders
    from fusion.studio.jobs.job_queue import JobQueue
    from fusion.studio.views.items import Row

_PAGE = 100  # items in the table at a time
_EVERY_S = 0.3
# The table's buttons tell which item they stand for.
_CHOOSE = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-item]');
  if (button) trigger('click', {item: button.dataset.item});
});"""


class CacheTab:
    """The tab's answers; `crc` remembers what was checked since the studio began."""

    def __init__(self, folders: Folders, desk: JobQueue) -> None:
        self._folders, self._desk = folders, desk
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
                wanted = gr.Textbox(label="Items whose name or source holds", placeholder="all")
                page = gr.Number(1, label=f"Page ({_PAGE} items each)", precision=0, minimum=1)
                check = gr.Button("Check these items' crc", elem_id="check")
                news = gr.HTML()
            with gr.Column(scale=5, min_width=320):
                charts = gr.HTML("<p>What fusion could gain from this cache: press Analyse.</p>", elem_id="charts")
                items = gr.HTML(elem_id="items", js_on_load=_CHOOSE)
                item = gr.HTML("<p>Choose an item to see what the experts made of it.</p>", elem_id="item")
        words = [cache, wanted, page]
        analyse.click(self.analyse, [cache], [news, charts], **PRIVATE)
        check.click(self.check, words, [news, items], **PRIVATE)
        cancel.click(stopper(self._desk), None, None, **PRIVATE)
        items.click(self.show, [cache, wanted, page], [item, items], **PRIVATE)
        for event in (tab.select, *(one.change for one in words)):
            event(self.table, words, [news, items], **PRIVATE)
        cache.focus(lambda: gr.update(choices=list(self._folders.caches())), None, cache, **PRIVATE)

    def table(self, cache: str, wanted: str, page: float) -> tuple[Any, Any]:
        """A page of items."""
        try:
            return "", self._table(cache, self._rows(cache, wanted, page))
        except Refusal as refusal:
            return refused_card(sentence(refusal)), ""

    def analyse(self, cache: str, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        """The headroom, as a job in the line."""
        try:
            folder = self._folders.cache(cache)
            ticket = self._desk.submit(owner_of(request), lambda ticket: find_headroom(folder, ticket))
        except Refusal as refusal:
            yield refused_card(sentence(refusal)), gr.skip()
            return
        while not ticket.finished.wait(_EVERY_S):
            ahead = self._desk.ahead(ticket)
            seconds = ticket.news.seconds if isinstance(ticket.news, HeadroomNews) else 0.0
            doing = f"{ahead} jobs before yours" if ahead else f"analysing {cache}: {seconds:.0f} s"
            yield card("Headroom", [f"<p>{doing} &hellip;</p>"]), gr.skip()
        if ticket.refusal is not None:
            yield refused_card(sentence(ticket.refusal)), gr.skip()
        elif ticket.state == "done" and isinstance(ticket.news, HeadroomNews) and ticket.news.found is not None:
            yield "", headroom_page(ticket.news.found)
        else:
            yield card("Cancelled", []), gr.skip()

    def check(self, cache: str, wanted: str, page: float, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        """Every byte of the items shown, as a job in the line."""
        try:
            rows = self._rows(cache, wanted, page)
            crc = self._crc.setdefault(cache, {})
            ticket = self._desk.submit(owner_of(request), lambda ticket: check_items(rows, crc, ticket))
        except Refusal as refusal:
            yield refused_card(sentence(refusal)), gr.skip()
            return
        over = False
        while not over:
            over = ticket.finished.wait(_EVERY_S)
            number, total = ticket.news or (0, len(rows))
            damaged = sum(state.startswith("damaged") for state in crc.values())
            word = {"stopped": "Cancelled", "done": "Checked"}.get(ticket.state, "Checking")
            yield card(word, [f"<p>{number} of {total} items; {damaged} damaged.</p>"]), self._table(cache, rows)

    def show(self, cache: str, wanted: str, page: float, event: gr.EventData) -> tuple[Any, Any]:
        """The item that was chosen; its crc is checked with it."""
        try:
            rows = self._rows(cache, wanted, page)
            row = next((one for one in rows if one.id == event.item and one.entry is not None), None)
            if row is None:
                raise Refusal("there is no such item here", where="items", cure="choose one of the table")
            self._crc.setdefault(cache, {})[row.id] = crc_state(row.path)
            return item_page(self._folders.cache(cache), row), self._table(cache, rows)
        except Refusal as refusal:
            return refused_card(sentence(refusal)), gr.skip()

    def _rows(self, cache: str, wanted: str, page: float) -> list[Row]:
        root = self._folders.cache_root
        assert root is not None
        first = (max(1, int(page or 1)) - 1) * _PAGE
        return list_items(self._folders.cache(cache), root, wanted or "")[first : first + _PAGE]

    def _table(self, cache: str, rows: list[Row]) -> str:
        return items_table(rows, self._crc.get(cache, {}))
