"""A published weights file's address -> the verified file under its final name; cut downloads go on where they were."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from tqdm import tqdm

from experts.spec import WeightsSource
from imaging import atomic
from imaging.files import inside
from imaging.hashes import file_sha256
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from experts.spec import ExpertSpec

ATTEMPTS = 5
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0
_BLOCK = 1 << 20


def fetch(
    spec: ExpertSpec, folder: Path, *, mirror: str | None = None, pause: float = PAUSE_SECONDS
) -> tuple[Path, str]:
    """Download the first file of the expert that has an address into `folder`; return its path and sha256.

    Its code comes first, if that has an address. A file that is there already and has the published hash is left alone.
    """
    source = next((one for one in spec.weights if one.url), None)
    if source is None or source.url is None:
        page = spec.weights[0].page
        where = folder / spec.weights[0].file
        cure = f"get it by hand from {page or 'its author'} and put it there, or `python -m experts import` it"
        raise Refusal(f"'{spec.name}' has no address to fetch from", where=where, cure=cure)
    code = spec.code
    if code is not None and code.url is not None:
        published = WeightsSource(file=code.file, url=code.url, bytes=code.bytes, sha256=code.sha256)
        _fetch_file(published, code.url, folder, mirror, pause)
    return _fetch_file(source, source.url, folder, mirror, pause)


def _fetch_file(
    source: WeightsSource, address: str, folder: Path, mirror: str | None, pause: float
) -> tuple[Path, str]:
    final = inside(folder, source.file)
    if source.sha256 and final.is_file() and file_sha256(final) == source.sha256:
        return final, source.sha256
    url = mirrored(address, mirror)
    if urlparse(url).scheme not in ("http", "https"):
        raise Refusal("is not an http address", where=url, cure="correct the url")
    partial = final.with_name(f".{final.name}.part")
    folder.mkdir(parents=True, exist_ok=True)
    _download(url, partial, pause)
    sha256 = _verify(partial, source, url)
    atomic.commit(partial, final)
    _notes(partial).unlink(missing_ok=True)
    return final, sha256


def mirrored(url: str, mirror: str | None) -> str:
    """The same path below another base address: `https://host/a/b` at `http://here/m` -> `http://here/m/a/b`."""
    return url if not mirror else mirror.rstrip("/") + urlparse(url).path


def _download(url: str, partial: Path, pause: float) -> None:
    """Fetch into `partial`, taking up what an earlier try left, until the server has sent all of it."""
    trouble = "the connection was cut"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if _download_once(url, partial):
                return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise Refusal(
                    f"the server answers {error.code} {error.reason}", where=url, cure="check the address"
                ) from None
            trouble = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            trouble = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < ATTEMPTS:
            time.sleep(pause * attempt)
    cure = "run the same command again: it goes on where it stopped"
    raise Refusal(f"could not be fetched in {ATTEMPTS} tries ({trouble})", where=url, cure=cure)


def _download_once(url: str, partial: Path) -> bool:
    """One request for what is missing; True when the file is complete."""
    have, mark = _what_is_there(partial, url)
    request = urllib.request.Request(url, headers={"User-Agent": "championship-sr"})  # noqa: S310 (scheme checked)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", mark)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310 (scheme checked)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is longer than what is there: start over
            partial.unlink()
            return False
        raise
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        _notes(partial).write_text(json.dumps({"url": url, "mark": _mark(response.headers)}), encoding="utf-8")
        with (
            partial.open("ab" if resumed else "wb") as stream,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=partial.name[1:-5]) as bar,
        ):
            while block := response.read(_BLOCK):
                stream.write(block)
                bar.update(len(block))
    return total is None or partial.stat().st_size == total


def _what_is_there(partial: Path, url: str) -> tuple[int, str]:
    """Bytes of an earlier try that may be continued, and the server's mark of the version they belong to."""
    if not partial.is_file() or not _notes(partial).is_file():
        return 0, ""
    notes = json.loads(_notes(partial).read_text(encoding="utf-8"))
    if notes["url"] != url or not notes["mark"]:
        return 0, ""
    return partial.stat().st_size, notes["mark"]


def _mark(headers: http.client.HTTPMessage) -> str:
    """What distinguishes one version of the remote file from the next: a strong ETag, or its date."""
    tag = headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""


def _notes(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _verify(partial: Path, source: WeightsSource, url: str) -> str:
    """Hold the finished download against what is published; a wrong one is removed, not kept for a resume."""
    size = os.stat(partial).st_size  # noqa: PTH116
    sha256 = file_sha256(partial)
    wrong = None
    if source.bytes is not None and size != source.bytes:
        wrong = f"has {size} bytes, published are {source.bytes}"
    known = source.sha256 or source.sha256_prefix
    if wrong is None and known and not sha256.startswith(known.lower()):
        wrong = f"sha256 is {sha256[:16]}..., published is {known[:16]}"
    if wrong is not None:
        partial.unlink()
        _notes(partial).unlink(missing_ok=True)
        raise Refusal(f"the fetched file {wrong}", where=url, cure="it was removed; check the address")
    return sha256
