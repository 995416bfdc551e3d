"""A Python file, a class in it and tensors -> the network that they make, if its user trusts that code.

Running a Python file can do anything, so it is asked for by name: `--trust-code`, or the file's sha256 in the YAML.
The bytes that were hashed are the bytes that run. Weights never run code: they come through the safe reader.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from experts.loading.loaded import LoadedNetwork, key_trouble
from experts.loading.probe import probe_network
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from experts.loading.weights import StateFile
    from experts.spec import CodeSource, ExpertSpec

# Training frameworks wrap the tensors: the smoothed ones (BasicSR's params_ema) are those that were published.
WRAPPERS = ("params_ema", "params-ema", "params", "model_state_dict", "state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "netG.", "model.", "net.")


@dataclass(frozen=True)
class TrustedCode:
    """A Python file as read, whose user has agreed that it runs."""

    path: Path
    content: bytes
    sha256: str


def load_code_network(state: StateFile, spec: ExpertSpec, code: CodeSource, *, trust: bool) -> LoadedNetwork:
    """Run the code, build the network, load the tensors strictly, and find by forwards how it must be run."""
    trusted = read_code(code, spec.name, trust=trust)
    with _foreign(trusted.path, "it cannot be run"):
        module = _run(trusted)
    make = _named(module, code.name, trusted.path)
    with _foreign(trusted.path, f"{code.name} cannot be built with {_in_words(code.arguments) or 'no arguments'}"):
        network = make(**code.arguments)
    if not isinstance(network, nn.Module):
        what = f"{code.name} makes a {type(network).__name__}, not a torch.nn.Module"
        raise Refusal(what, where=trusted.path, cure="name a network's class")
    try:
        network.load_state_dict(peel(state.tensors, network), strict=True)
    except RuntimeError as error:
        cure = f"give the weights of {code.name}, or the arguments they were trained with"
        raise Refusal(f"does not fit {code.name}: {key_trouble(error)}", where=state.path, cure=cure) from None
    network.eval().requires_grad_(requires_grad=False)
    with _foreign(trusted.path, f"{code.name} cannot be run"):
        probed = probe_network(network, code.range, trusted.path, spec.padding)
    return LoadedNetwork(
        network,
        spec.architecture or code.name,
        sum(parameter.numel() for parameter in network.parameters()),
        probed.padding,
        probed.call,
        code=identity_of(code, trusted.sha256),
        scale=probed.scale,
    )


def read_code(code: CodeSource, expert: str, *, trust: bool) -> TrustedCode:
    """Read the file and hold it against its pinned hash; without a pin it must be trusted by the caller."""
    path = Path(code.file)
    try:
        content = path.read_bytes()
    except OSError as error:
        cure = "check the path of the code"
        if code.url is not None:
            get = f"`python -m experts fetch {expert}` gets it with the weights"
            cure = f"put it beside the weights or into pretrained/; {get}"
        raise Refusal(f"cannot be read ({error.strerror})", where=path, cure=cure) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if code.sha256 is not None and code.sha256.lower() != sha256:
        what = f"sha256 is {sha256[:16]}..., pinned is {code.sha256[:16]}: the code has changed"
        raise Refusal(what, where=path, cure="read what changed, then pin the new hash")
    if code.sha256 is None and not trust:
        cure = f"read it, then add --trust-code, or pin code.sha256: {sha256} in the YAML"
        raise Refusal(f"is Python code that would be run to build {code.name}", where=path, cure=cure)
    return TrustedCode(path, content, sha256)


def identity_of(code: CodeSource, sha256: str) -> str:
    """All of the code that decides the numbers, for caches and manifests: `HASH Net(depth=4)`."""
    given = "" if code.range is None else f" range {code.range}"
    return f"{sha256} {code.name}({_in_words(code.arguments)}){given}"


def _in_words(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(arguments[key])}" for key in sorted(arguments))


def _run(code: TrustedCode) -> ModuleType:
    """Run the file as a module of a name of its own; dataclasses and the like look it up there."""
    module = ModuleType(f"expert_code_{code.sha256[:16]}")
    module.__file__ = str(code.path)
    sys.modules[module.__name__] = module
    exec(compile(code.content, str(code.path), "exec"), module.__dict__)  # noqa: S102 (trusted by name)
    return module


def _named(module: ModuleType, name: str, path: Path) -> Callable[..., object]:
    found = getattr(module, name, None)
    if callable(found):
        return found
    classes = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]
    raise Refusal(f"has no class or function '{name}'", where=path, cure=nearest(name, classes))


@contextlib.contextmanager
def _foreign(path: Path, what: str) -> Generator[None]:
    """Whatever foreign code raises becomes one line; what it prints goes to stderr, since stdout may be JSON."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Refusal:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "?").partition(".")[0]
        cure = f"install {package}, or set PYTHONPATH to the checkout if it is a folder of it"
        raise Refusal(f"needs the package '{package}', which is not installed", where=path, cure=cure) from None
    except (Exception, SystemExit) as error:  # code from anywhere may raise anything
        first = str(error).splitlines()[0][:160] if str(error) else ""
        cure = "correct the code or the arguments"
        raise Refusal(f"{what} ({type(error).__name__}: {first})", where=path, cure=cure) from error


def peel(tensors: Mapping[str, Any], network: nn.Module) -> dict[str, Tensor]:
    """A checkpoint as saved -> the tensors under the network's own names: wrappers and common prefixes come off."""
    peeled: Mapping[str, Any] = tensors
    while True:
        inner = next((peeled[key] for key in WRAPPERS if isinstance(peeled.get(key), dict)), None)
        if inner is None:
            break
        peeled = inner
    own = list(network.state_dict())
    for prefix in PREFIXES:
        if peeled and all(key.startswith(prefix) for key in peeled) and not all(key.startswith(prefix) for key in own):
            peeled = {key.removeprefix(prefix): value for key, value in peeled.items()}
    return dict(peeled)
