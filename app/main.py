"""Builds the explorer as a FastAPI app: pages, API, static files and error handlers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from app.api import features as api_features
from app.api import generations as api_generations
from app.api import labels as api_labels
from app.api import runs as api_runs
from app.database.engine import database_url, migrated, open_database
from app.errors import BadBody, BadQuery, NotFound, ReaderError, ResultsUnreadable, RunNotFound
from app.generations.live import LiveGenerations
from app.inference.connect import connect
from app.pages import docs, evidence, feature, features, health, home, labels, run, sequence, steering
from app.results.connection import RunCatalog
from app.settings import Settings
from app.web.metrics import CountRequests, Metrics
from app.web.security import SameOriginWrites, SecurityHeaders
from app.web.templates import VENDOR, make_environment, missing_assets, render, wants_fragment

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
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.catalog = RunCatalog(settings.runs)
    app.state.labels = open_database(database_url(settings))
    app.state.client, app.state.supervisor = connect(settings)
    app.state.live = LiveGenerations(app.state.client, app.state.labels)
    app.state.environment = make_environment(settings.frontend, settings.root_path)
    app.add_middleware(SameOriginWrites)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=3)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(CountRequests, metrics=app.state.metrics)
    _add_errors(app)
    _add_files(app, settings)
    for module in (home, run, features, feature, evidence, sequence, labels, steering, docs, health):
        app.include_router(module.router)
    for interface in (api_runs, api_features, api_labels, api_generations):
        app.include_router(interface.router)
    return app


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
    app.state.labels.dispose()
    app.state.catalog.close()


def _add_files(app: FastAPI, settings: Settings) -> None:
    """Serve our files at /static and third-party files at /vendor; versioned URLs may be cached for ever."""

    def file_response(request: Request, root: str, path: str) -> Response:
        folder = (settings.frontend / root).resolve()
        file = (folder / path).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise NotFound(f"There is no file {path!r}.", remedy="Reload the page; if that fails, run `make setup`.")
        cache_control = "public, max-age=31536000, immutable" if "v" in request.query_params else "no-cache"
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
        fact = f"There is no page at {request.url.path}."
        return _error_response(request, NotFound(fact, remedy="Start from the home page."))
    refusal = ReaderError(f"{error.detail}.", remedy="Go back and use the page's own links and forms.")
    refusal.status = error.status_code
    return _error_response(request, refusal)


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
