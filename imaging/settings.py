"""YAML file + `section.key=value` overrides -> a frozen, typed settings object; unknown keys are refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from imaging.names import valid_text
from imaging.refusal import Refusal, closest, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from typing_extensions import TypeIs


# Beside its own errors, PyYAML passes on those of Python's numbers, dates and recursion.
_UNREADABLE = (yaml.YAMLError, ValueError, OverflowError, RecursionError, AttributeError, TypeError)
_MOST_VALUES = 100_000


class Settings(BaseModel):
    """Base of every configuration: frozen, strict about names, every default visible in its class."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Settings)


def load_settings(kind: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read `path` as YAML, apply `a.b=value` overrides in order, validate as `kind`."""
    document = read_yaml(path)
    for override in overrides:
        _override(document, override)
    return parse_settings(kind, document, where=str(path), overrides=overrides)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file -> its mapping; anything else is refused."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal("no such file", where=path, cure="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"cannot be read ({error})", where=path, cure="give a readable YAML file") from None
    except _UNREADABLE as error:
        raise Refusal(f"is not YAML ({_short(error)})", where=path, cure="correct the line it names") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise Refusal("is not a mapping of settings", where=path, cure="write 'key: value' lines")
    if not _has_an_end(document):
        raise Refusal("unfolds to more than settings can be", where=path, cure="write the values out, without aliases")
    return document


def _short(error: Exception) -> str:
    return str(error)[:300] or type(error).__name__


def _has_an_end(document: object) -> bool:
    """Aliases name a part of the document again: nine times within nine times it has more values than memory holds."""
    pending, seen = [document], 0
    while pending:
        value = pending.pop()
        seen += 1
        if seen > _MOST_VALUES:
            return False
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, (list, tuple, set)):
            pending += value
    return True


def parse_settings(kind: type[S], document: Any, *, where: str, overrides: Sequence[str] = ()) -> S:
    """A plain mapping -> `kind`; the first thing wrong is refused with its place and the nearest right name.

    `where` it came from, but for what `overrides` of the command line have put there.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        errors = error.errors()
        # A mistyped name is often reported twice, as unknown and as missing; the unknown one is the more useful.
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        # Of a value that may be of several types, pydantic names the type as well: `features.literal['taps','none']`.
        place = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
        if any(f"{place}.".startswith(f"{override.partition('=')[0]}.") for override in overrides):
            where = "command line"
        if first["type"] == "extra_forbidden":
            section, _, name = place.rpartition(".")
            fields = _fields_at(kind, first["loc"][:-1])
            close = closest(name, fields)
            # With its section, as the command line wants it.
            hint = nearest(name, fields) if close is None else f"did you mean '{f'{section}.{close}'.lstrip('.')}'?"
            raise Refusal(f"unknown setting '{place}'", where=where, cure=hint) from None
        raise Refusal(f"setting '{place}': {first['msg']}", where=where, cure="correct that value") from None


def _override(document: dict[str, Any], override: str) -> None:
    """Apply one `section.key=value` override; the value is read as YAML, so numbers and lists work."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise Refusal(f"'{override}' is not an override", where="command line", cure="write section.key=value")
    if valid_text(override) != override:
        cure = "rename that file or folder: settings are recorded as text"
        raise Refusal(f"'{override}' is not valid UTF-8", where="command line", cure=cure)
    *sections, last = key.split(".")
    place = document
    for section in sections:
        if place.get(section) is None:  # absent, or written `section:` with nothing below it
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise Refusal(
                f"'{section}' in '{override}' is a value, not a section", where="command line", cure="check the name"
            )
    try:
        place[last] = yaml.safe_load(text)
    except _UNREADABLE:
        raise Refusal(f"the value in '{override}' is not YAML", where="command line", cure="quote it") from None


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names of the model that sits at `location` inside `kind`."""
    for part in location:
        field = kind.model_fields.get(str(part))
        if field is None:
            continue
        inner = [a for a in (field.annotation, *get_args(field.annotation)) if _is_model(a)]
        if inner:
            kind = inner[0]
    return list(kind.model_fields)


def _is_model(annotation: Any) -> TypeIs[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
