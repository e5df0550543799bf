"""Validators of pages: what a browser has seen and has not changed is not made again.

Results never change under their name, so a page changes only with the results file, the labels of the run, the
cookies that this explorer sets, the address, or the explorer's own code. A tag is strong: equal tags, equal bytes.
"""

import functools
import hashlib
import os
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

VARY = "HX-Request, HX-Request-Type, HX-Target, Accept-Encoding, Cookie"
"""Headers that decide which representation is sent."""
COOKIES = "crossdiff_"
"""How the names of cookies begin that change what pages show."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the files that pages are made of."""
_HX = ("hx-request", "hx-request-type", "hx-target", "hx-history-restore-request")
_APP = Path(__file__).resolve().parents[1]


class NotModified(Exception):
    """The client has this very page already."""

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.tag = tag


def page_tag(request: Request, *states: str) -> str:
    """The tag of the page that this request asks for. Raises NotModified if the client has it.

    `states` are all that it depends on beside the address, the headers in VARY and the code.
    """
    headers = request.headers
    cookies = sorted(one for one in request.cookies.items() if one[0].startswith(COOKIES))
    known = (
        _code(request.app.state.settings.frontend),
        str(request.url.path),
        request.url.query,
        "gzip" if "gzip" in headers.get("accept-encoding", "") else "",
        *(headers.get(name, "") for name in _HX),
        *(f"{name}={value}" for name, value in cookies),
        *states,
    )
    digest = hashlib.sha256("\0".join(known).encode("utf-8", "replace")).hexdigest()
    tag = f'"{digest[:24]}"'
    if request.method in ("GET", "HEAD") and tag in _seen(headers.get("if-none-match", "")):
        raise NotModified(tag)
    return tag


def not_modified(_: Request, found: Exception) -> Response:
    """The answer to a client that has the page."""
    assert isinstance(found, NotModified)
    return Response(status_code=304, headers={"ETag": found.tag, "Vary": VARY})


def _seen(header: str) -> set[str]:
    """Tags that the client has; those that a proxy made weak count, since pages are only compared."""
    return {part.strip().removeprefix("W/") for part in header.split(",")}


def _code(frontend: Path) -> str:
    return _code_at(frontend, int(time.monotonic() / LOOK_EVERY))


@functools.lru_cache(maxsize=4)
def _code_at(frontend: Path, moment: int) -> str:  # noqa: ARG001 - looked at again each moment
    """A text that changes with the explorer's modules, templates and files, and with the packages it uses."""
    folders = [frontend / "templates", frontend / "static", frontend / "node_modules"]
    newest = [f"{entry.name}{entry.stat().st_mtime_ns}" for folder in folders for entry in _entries(folder)]
    return f"{_modules()}{hashlib.sha256(''.join(newest).encode()).hexdigest()}"


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


@functools.cache
def _modules() -> str:
    """Digest of this process's own modules, which do not change while it runs."""
    digest = hashlib.sha256()
    for path in sorted(_APP.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
