"""The runs tab: training curves of the run folders, beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from fusion.studio.uploads import user_message
from fusion.studio.views.cards import refused_card
from fusion.studio.views.events import EVENT_OPTIONS
from fusion.studio.views.runs import RunLog, read_run, runs_page
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from fusion.studio.folders import Folders

_AT_FIRST = 6  # runs that are shown without asking: more curves than that cannot be told apart


class RunsTab:
    """The tab's event handlers; runs are read again only where their files have grown."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._cache: dict[Path, tuple[tuple[int, float], RunLog]] = {}

    def build(self, tab: gr.Tab) -> None:
        """Controls and charts, read when the tab is opened."""
        names = list(self._folders.runs())
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=270):
                runs = gr.CheckboxGroup(names, value=names[:_AT_FIRST], label="Runs", elem_id="runs")
                smoothing = gr.Slider(0, 0.98, value=0.6, step=0.02, label="Smoothing of losses and speeds")
                reload = gr.Button("Reload", elem_id="reload")
            with gr.Column(scale=5, min_width=320):
                curves = gr.HTML(elem_id="curves")
        for event in (tab.select, runs.change, smoothing.release):
            event(self.curves, [runs, smoothing], curves, **EVENT_OPTIONS)
        reload.click(self.reload, [runs, smoothing], [runs, curves], **EVENT_OPTIONS)

    def curves(self, names: list[str], smoothing: float) -> str:
        """Charts of the chosen runs."""
        if not names:
            return "<p>Tick a run to see its curves.</p>"
        try:
            return runs_page({name: self._run(self._folders.run(name)) for name in names}, smoothing)
        except Refusal as refusal:
            return refused_card(user_message(refusal))

    def reload(self, names: list[str], smoothing: float) -> tuple[Any, str]:
        """The folders as they are now."""
        known = list(self._folders.runs())
        kept = [name for name in names if name in known]
        return gr.update(choices=known, value=kept), self.curves(kept, smoothing)

    def _run(self, folder: Path) -> RunLog:
        files = [*folder.glob("log/*"), folder / "summary.json"]
        stats = [path.stat() for path in files if path.is_file()]
        # Size as well: a run that logs twice within the clock's resolution keeps its time.
        stamp = sum(one.st_size for one in stats), max((one.st_mtime for one in stats), default=0.0)
        known = self._cache.get(folder)
        if known is None or known[0] != stamp:
            known = self._cache[folder] = stamp, read_run(folder)
        return known[1]
