"""Jinja environment, number formats, and `render` for pages and fragments."""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from app.results.evidence.criteria import verdict_in_short
from app.results.features.tokens import visible
from app.web.languages import language_name
from app.web.numbers import ago, compact, duration, moment, number, percent, signed
from app.web.token_html import context_line, token_rows
from app.web.validators import VARY

VENDOR = {
    "htmx.js": "htmx.org/dist/htmx.min.js",
    "hx-sse.js": "htmx.org/dist/ext/hx-sse.min.js",
    "pico.css": "@picocss/pico/css/pico.min.css",
    "plotly.js": "plotly.js-basic-dist-min/plotly-basic.min.js",
}
"""Third-party files that pages may load, by the name in their address `/vendor/<name>`, inside node_modules."""


Query = Mapping[str, Any] | Iterable[tuple[str, Any]] | None
"""What follows the question mark of an address."""


class Page(Protocol):
    """A page's context: a frozen dataclass whose fields become the template's variables."""

    template: ClassVar[str]
    """File of the whole page."""
    fragments: ClassVar[dict[str, str]]
    """File that HTMX gets instead, by the id of the element it asks for."""
    __dataclass_fields__: ClassVar[dict[str, Any]]


def make_environment(frontend: Path, root_path: str) -> Environment:
    """The Jinja environment: strict about names, escaping everything."""
    environment = Environment(
        loader=FileSystemLoader(frontend / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, percent=percent, compact=compact, signed=signed, duration=duration, moment=moment, ago=ago
    )
    environment.filters.update(log10=math.log10, language=language_name, visible=visible)

    def url(path: str, query: Query = None) -> str:
        return address(root_path, path, query)

    def asset(name: str) -> str:
        return f"{root_path}/static/{name}?v={file_version(frontend / 'static' / name)}"

    def vendor(name: str) -> str:
        return f"{root_path}/vendor/{name}?v={file_version(frontend / 'node_modules' / VENDOR[name])}"

    environment.globals.update(url=url, asset=asset, vendor=vendor, missing_assets=missing_assets(frontend))
    environment.globals.update(verdict_in_short=verdict_in_short, token_rows=token_rows, context_line=context_line)
    return environment


def address(root_path: str, path: str, query: Query = None) -> str:
    """An address inside the explorer; `query` is a mapping or pairs, of which empty values are left out."""
    pairs = query.items() if isinstance(query, Mapping) else query or ()
    text = urlencode([(key, value) for key, value in pairs if value not in (None, "")], quote_via=quote)
    return f"{root_path}{path}{'?' if text else ''}{text}"


def missing_assets(frontend: Path) -> list[str]:
    """Third-party files that are not installed."""
    return [name for name, path in VENDOR.items() if not (frontend / "node_modules" / path).is_file()]


def render(request: Request, page: Page, status: int = 200, *, tag: str = "") -> HTMLResponse:
    """The page as a whole document, or the part of it that HTMX asked for; `tag` is its validator."""
    environment: Environment = request.app.state.environment
    context = {field: getattr(page, field) for field in page.__dataclass_fields__}
    html = environment.get_template(_file(request, page)).render(context)
    headers = {"Vary": VARY, "ETag": tag} if tag else {"Vary": VARY}
    return HTMLResponse(html, status, headers=headers)


def wants_fragment(request: Request) -> bool:
    """Whether HTMX asks for a part of a page; when it restores history it needs the whole."""
    headers = request.headers
    partial = headers.get("HX-Request") == "true" and headers.get("HX-Request-Type", "partial") == "partial"
    return partial and "HX-History-Restore-Request" not in headers


def _file(request: Request, page: Page) -> str:
    """The template for this request: HTMX names the element to fill as `tag#id`."""
    if not wants_fragment(request):
        return page.template
    target = request.headers.get("HX-Target", "").partition("#")[2]
    return page.fragments.get(target, page.template)


def file_version(path: Path) -> str:
    """A short hash of the file, so that browsers may cache it for ever."""
    try:
        changed = path.stat().st_mtime_ns
    except FileNotFoundError:
        return "missing"
    return _digest(path, changed)


@lru_cache(maxsize=256)
def _digest(path: Path, changed: int) -> str:  # noqa: ARG001 - the time of change is part of the key
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def as_json(value: object) -> Any:
    """Plain data for JSON: dataclasses become objects; JSON has no word for numbers that are not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
