"""A trained file and an untrained network -> the network with the file's weights; new parts are named in the settings.

Without `start_new` every key must fit. With it, the parts so named keep their random initial weights (another scale's
upsampler, say), and every other key must still fit.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fusion.training.loop.export import read_exported
from imaging.paths import find_shipped
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from fusion.training.settings import NetworkSettings
    from fusion.training.tasks.task import Task

log = logging.getLogger(__name__)


def load_initial_weights(task: Task, settings: NetworkSettings) -> None:
    """Load `start_from`, where there is one: whole, or all of it but what `start_new` names."""
    if settings.start_from is None:
        return
    start_from = find_shipped(settings.start_from)
    if settings.start_new:
        load_known(task.network, start_from, settings.start_new)
    else:
        task.load(task.network, start_from)
        log.info("initial weights: all of %s", start_from)


def load_known(network: nn.Module, path: Path, new: Sequence[str]) -> None:
    """Take every weight but those of the parts named in `new`; anything else that does not fit is refused."""
    own, given = network.state_dict(), read_exported(path)
    for name in new:
        if not any(_belongs(key, (name,)) for key in own):
            raise Refusal(
                f"the network has no part '{name}'", where="network.start_new", cure=nearest(name, _parts(own))
            )
    kept = [key for key in own if _belongs(key, new)]
    unused = [key for key in given if _belongs(key, new)]
    known = [key for key in own if key not in kept]
    wrong = sorted(set(known) ^ (set(given) - set(unused))) or [
        key for key in known if own[key].shape != given[key].shape
    ]
    if wrong:
        raise Refusal(
            f"does not fit the network: '{wrong[0]}', which start_new does not name",
            where=path,
            cure=f"add '{wrong[0].partition('.')[0]}' to network.start_new if that part is to be new",
        )
    taken = {key: given[key].to(own[key].dtype) for key in known}
    network.load_state_dict({**own, **taken})
    log.info("initial weights from %s: %d tensors taken", path, len(taken))
    log.info("random initial weights: %s", _listed(kept, own))
    log.info("in the file and not taken: %s", _listed(unused, given))


def _belongs(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _parts(own: dict[str, Tensor]) -> set[str]:
    return {key.partition(".")[0] for key in own}


def _listed(keys: Sequence[str], tensors: dict[str, Tensor]) -> str:
    """Each tensor with its shape."""
    return ", ".join(f"{key} {tuple(tensors[key].shape)}" for key in keys) or "nothing"
