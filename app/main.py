"""Builds the explorer as a FastAPI app: pages, API, static files and error handlers."""

import asyncio
import logging
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Match

from app.api import exports as api_exports
from app.api import features as api_features
from app.api import generations as api_generations
from app.api import labels as api_labels
from app.api import runs as api_runs
from app.database.engine import database_url, migrated, open_database
from app.database.write_queue import WriteQueue
from app.errors import BadBody, BadQuery, NotFound, ReaderError, ResultsUnreadable, RunNotFound
from app.generations.live import LiveGenerations
from app.inference.connect import connect
from app.pages import (
    comparison,
    docs,
    evidence,
    feature,
    features,
    health,
    home,
    labels,
    method,
    run,
    sequence,
    steering,
    triage,
)
from app.results.connection import RunCatalog
from app.settings import Settings
from app.web.metrics import CountRequests, Metrics
from app.web.run_labels import LabelReader
from app.web.security import KnownHosts, RequestLimits, SameOriginWrites, SecurityHeaders
from app.web.templates import VENDOR, address, file_version, make_environment, missing_assets, render, wants_fragment
from app.web.validators import NotModified, not_modified

log = logging.getLogger("crossdiff.explorer")


@dataclass(frozen=True)
class ErrorPage:
    """What went wrong, and what to do about it."""

    template: ClassVar[str] = "error.html"
    fragments: ClassVar[dict[str, str]] = {}

    status: int
    title: str
    fact: str
    remedy: str
    run: str
    """The run to link to; empty when its pages would not help."""


class Problem(BaseModel):
    """What went wrong, and what to do about it."""

    status: int
    title: str
    message: str
    remedy: str


class ProblemAnswer(BaseModel):
    """Every error, in one shape."""

    error: Problem


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ProblemAnswer, "description": "What was sent cannot be read or done."},
    403: {"model": ProblemAnswer, "description": "Another site asked for a change."},
    404: {"model": ProblemAnswer, "description": "There is no such thing."},
    413: {"model": ProblemAnswer, "description": "More was sent than a form holds."},
    414: {"model": ProblemAnswer, "description": "The address is too long."},
    421: {"model": ProblemAnswer, "description": "The explorer does not go by the name in the Host header."},
    422: {"model": ProblemAnswer, "description": "A parameter is not valid."},
    503: {"model": ProblemAnswer, "description": "Results or labels cannot be used now."},
}
"""Errors that every operation can answer with."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The explorer as an ASGI application; nothing is opened before the first request."""
    settings = settings or Settings.from_environment()
    app = FastAPI(
        title="Crossdiff",
        summary="Compare what two language models represent inside.",
        version="1",
        # The proxy strips the prefix: routes omit it, links in pages and the OpenAPI description include it.
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        # Done below: Starlette's own leads to the name in the Host header and forgets the prefix.
        redirect_slashes=False,
        responses=REFUSALS,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.catalog = RunCatalog(settings.runs)
    app.state.labels = open_database(database_url(settings))
    app.state.label_reader = LabelReader(app.state.labels)
    app.state.writers = WriteQueue(app.state.labels)
    app.state.client, app.state.supervisor = connect(settings)
    app.state.live = LiveGenerations(app.state.client, app.state.labels)
    app.state.environment = make_environment(settings.frontend, settings.root_path)
    app.add_middleware(SameOriginWrites)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=3)
    app.add_middleware(RequestLimits)
    app.add_middleware(KnownHosts, names=_names(settings))
    app.add_middleware(SecurityHeaders)
    app.add_middleware(CountRequests, metrics=app.state.metrics)
    _add_errors(app)
    _add_files(app, settings)
    for module in (
        home,
        run,
        method,
        comparison,
        features,
        feature,
        evidence,
        sequence,
        labels,
        steering,
        triage,
        docs,
    ):
        app.include_router(module.router)
    app.include_router(health.router)
    for interface in (api_runs, api_exports, api_features, api_labels, api_generations):
        app.include_router(interface.router)
    return app


def _names(settings: Settings) -> set[str]:
    """Names that this explorer goes by, beside addresses and those of loopback."""
    own = {platform.node()} if settings.beyond_loopback else set()
    return {settings.host, *settings.hosts, *own}


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    missing = missing_assets(app.state.settings.frontend)
    if missing:
        log.error(
            "Scripts and styles are not installed (%s); pages are unstyled. Run `make setup`.", ", ".join(missing)
        )
    async with migrated(database_url(app.state.settings)), app.state.live.open():
        yield
    if app.state.supervisor is not None:
        await asyncio.to_thread(app.state.supervisor.stop)
    await asyncio.to_thread(app.state.writers.close)
    app.state.labels.dispose()
    app.state.catalog.close()


def _add_files(app: FastAPI, settings: Settings) -> None:
    """Serve our files at /static and third-party files at /vendor; versioned URLs may be cached for ever."""

    def file_response(request: Request, root: str, path: str) -> Response:
        folder = (settings.frontend / root).resolve()
        try:
            file = (folder / path).resolve()
            known = file.is_relative_to(folder) and file.is_file()
        except (OSError, ValueError):  # too long, or with a zero byte
            known = False
        if not known:
            fact = f"There is no file {path[:200]!r}."
            raise NotFound(fact, remedy="Reload the page; if that fails, run `make setup`.")
        lasting = request.query_params.get("v") == file_version(file)
        cache_control = "public, max-age=31536000, immutable" if lasting else "no-cache"
        return FileResponse(file, headers={"Cache-Control": cache_control})

    @app.get("/static/{path:path}", include_in_schema=False)
    def static_file(request: Request, path: str) -> Response:
        return file_response(request, "static", path)

    @app.get("/vendor/{name}", include_in_schema=False)
    def vendor_file(request: Request, name: str) -> Response:
        return file_response(request, "node_modules", VENDOR.get(name, "-"))


def _add_errors(app: FastAPI) -> None:
    """Render every error as a page, a fragment for HTMX, or JSON."""
    handlers: list[tuple[type[Exception] | int, Callable[[Request, Exception], Response]]] = [
        (ReaderError, _error_response),
        (HTTPException, _http_error),
        (RequestValidationError, _validation_error),
        (NotModified, not_modified),
        (500, _unexpected_error),
    ]
    for error_class, handler in handlers:
        app.add_exception_handler(error_class, handler)


def _error_response(request: Request, error: Exception) -> Response:
    """Render the error in the form the client expects: JSON, fragment or page."""
    assert isinstance(error, ReaderError)
    if isinstance(error, ResultsUnreadable):
        # Reopen the file at the next request: it may have been repaired.
        log.error("%s", error, exc_info=error.__cause__)
        request.app.state.catalog.forget(request.path_params.get("run", ""))
    run_pages_help = isinstance(error, NotFound | BadQuery) and not isinstance(error, RunNotFound)
    run = request.path_params.get("run", "") if run_pages_help else ""
    page = ErrorPage(error.status, error.title, error.fact, error.remedy, run)
    answer = _error_answer(request, page)
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


def _error_answer(request: Request, page: ErrorPage) -> Response:
    if request.url.path.startswith("/api/"):
        body = {"status": page.status, "title": page.title, "message": page.fact, "remedy": page.remedy}
        return JSONResponse({"error": body}, page.status)
    if wants_fragment(request):
        template = request.app.state.environment.get_template("_error.html")
        return Response(template.render(**page.__dict__), page.status, media_type="text/html")
    return render(request, page, page.status)


def _http_error(request: Request, error: Exception) -> Response:
    """Handle unknown routes and disallowed methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        path: str = request.scope["path"]
        if path.endswith("/") and path.strip("/") and request.method in ("GET", "HEAD"):
            root_path = request.app.state.settings.root_path
            where = address(root_path, f"/{quote(path.strip('/'))}", parse_qsl(request.url.query))
            return RedirectResponse(where, 307)
        fact = f"There is no page at {path[:200]}."
        return _error_response(request, NotFound(fact, remedy="Start from the home page."))
    refusal = ReaderError(f"{error.detail}.", remedy="Go back and use the page's own links and forms.")
    refusal.status = error.status_code
    answer = _error_response(request, refusal)
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(_methods(request))
    return answer


def _methods(request: Request) -> list[str]:
    """Methods that are taken at this path."""
    return [
        method
        for method in ("DELETE", "GET", "POST")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def _validation_error(request: Request, error: Exception) -> Response:
    """Handle invalid parameters and bodies; the message names each field."""
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    fact = f"{'; '.join(_problem(one) for one in problems)}."
    if any(one["loc"][0] == "body" for one in problems):
        return _error_response(request, BadBody(fact, remedy="Correct what is named here, and send it again."))
    remedy = "Correct the address, or start again from the list without filters."
    return _error_response(request, BadQuery(fact, remedy=remedy))


def _problem(one: dict[str, Any]) -> str:
    if one["type"] == "json_invalid":
        return f"The body is no JSON: {one['ctx']['error']} at character {one['loc'][-1]}"
    return f"{one['loc'][-1]}: {one['msg'].removeprefix('Value error, ')}"


def _unexpected_error(request: Request, error: Exception) -> Response:
    """Handle unexpected exceptions; the server logs the traceback."""
    problem = ReaderError(
        f"The explorer made a mistake ({type(error).__name__}).",
        remedy="Other pages still work. The log of `crossdiff serve` has the details; please report them.",
    )
    problem.status, problem.title = 500, "Something broke"
    return _error_response(request, problem)
