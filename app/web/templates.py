"""Jinja environment, number formats, and `render` for pages and fragments."""

import dataclasses
import datetime
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
from app.web.languages import language_name

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
    environment.filters.update(log10=math.log10, language=language_name)

    def url(path: str, query: Query = None) -> str:
        return address(root_path, path, query)

    def asset(name: str) -> str:
        return f"{root_path}/static/{name}?v={file_version(frontend / 'static' / name)}"

    def vendor(name: str) -> str:
        return f"{root_path}/vendor/{name}?v={file_version(frontend / 'node_modules' / VENDOR[name])}"

    environment.globals.update(url=url, asset=asset, vendor=vendor, missing_assets=missing_assets(frontend))
    environment.globals.update(verdict_in_short=verdict_in_short)
    return environment


def address(root_path: str, path: str, query: Query = None) -> str:
    """An address inside the explorer; `query` is a mapping or pairs, of which empty values are left out."""
    pairs = query.items() if isinstance(query, Mapping) else query or ()
    text = urlencode([(key, value) for key, value in pairs if value not in (None, "")], quote_via=quote)
    return f"{root_path}{path}{'?' if text else ''}{text}"


def missing_assets(frontend: Path) -> list[str]:
    """Third-party files that are not installed."""
    return [name for name, path in VENDOR.items() if not (frontend / "node_modules" / path).is_file()]


def render(request: Request, page: Page, status: int = 200) -> HTMLResponse:
    """The page as a whole document, or the part of it that HTMX asked for."""
    environment: Environment = request.app.state.environment
    context = {field: getattr(page, field) for field in page.__dataclass_fields__}
    html = environment.get_template(_file(request, page)).render(context)
    return HTMLResponse(html, status, headers={"Vary": "HX-Request, HX-Request-Type, HX-Target"})


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


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits and thousands separators; a dash for None and for what is no number."""
    if value is None:
        return "–"
    if isinstance(value, int) or value == 0:
        return f"{int(value):,}"
    if not math.isfinite(value):
        return "–"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; tiny shares keep two significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 0.001:
        return f"{number(value * 100, 2)} %"
    return f"{value * 100:.{digits}f} %"


def compact(value: float | None) -> str:
    """A count in few characters: 950, 12.3k, 4.5M."""
    if value is None or not math.isfinite(value):
        return "–"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if suffix == "k" else size
            return f"{value / unit:.3g}{suffix}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign."""
    return "–" if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """A span of time: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(value: datetime.datetime | None) -> str:
    """A point in time, UTC, to the minute."""
    return "–" if value is None else value.strftime("%Y-%m-%d %H:%M")


def ago(value: datetime.datetime | None, now: datetime.datetime | None = None) -> str:
    """Time since `value`, in words."""
    if value is None:
        return "–"
    now = now or datetime.datetime.now(datetime.UTC)
    if value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    seconds = max((now - value).total_seconds(), 0)
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "just now"


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
