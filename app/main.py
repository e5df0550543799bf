"""The explorer: `create_app(settings)` puts pages, API, static files and error pages together."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

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
from app.errors import BadQuery, NotFound, ReaderError, ResultsUnreadable, RunNotFound
from app.generations.steer import prepare_steering, steering_open
from app.pages import docs, evidence, feature, features, generations, health, home, labels, run, sequence, steer
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
    """The run that was asked about, where its pages can help; else empty."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The explorer as an ASGI application; nothing is opened before the first request."""
    settings = settings or Settings.from_environment()
    app = FastAPI(
        title="Crossdiff",
        summary="What is different inside two language models.",
        version="1",
        # The proxy strips the prefix, so routes do without it; addresses in pages and the description have it.
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.library = RunCatalog(settings.runs)
    app.state.labels = open_database(database_url(settings))
    prepare_steering(app, settings, app.state.labels)
    app.state.environment = make_environment(settings.frontend, settings.root_path)
    app.add_middleware(SameOriginWrites)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=3)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(CountRequests, metrics=app.state.metrics)
    _add_errors(app)
    _add_files(app, settings)
    for module in (home, run, features, feature, evidence, sequence, labels, steer, generations, docs, health):
        app.include_router(module.router)
    for interface in (api_runs, api_features, api_labels, api_generations):
        app.include_router(interface.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    missing = missing_assets(app.state.settings.frontend)
    if missing:
        log.error("Scripts and styles are not installed (%s); pages look bare. Run `make setup`.", ", ".join(missing))
    async with migrated(database_url(app.state.settings)), steering_open(app):
        yield
    app.state.labels.dispose()
    app.state.library.close()


def _add_files(app: FastAPI, settings: Settings) -> None:
    """Own static files at /static, third-party files at /vendor; both carry a version, so browsers may keep them."""

    def send(request: Request, root: str, path: str) -> Response:
        folder = (settings.frontend / root).resolve()
        file = (folder / path).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise NotFound(f"There is no file {path!r}.", remedy="Reload the page; run `make setup` if it stays away.")
        forever = "public, max-age=31536000, immutable" if "v" in request.query_params else "no-cache"
        return FileResponse(file, headers={"Cache-Control": forever})

    @app.get("/static/{path:path}", include_in_schema=False)
    def static_file(request: Request, path: str) -> Response:
        return send(request, "static", path)

    @app.get("/vendor/{name}", include_in_schema=False)
    def vendor_file(request: Request, name: str) -> Response:
        return send(request, "node_modules", VENDOR.get(name, "-"))


def _add_errors(app: FastAPI) -> None:
    """One answer for every error: a page, a fragment for HTMX, or JSON."""
    answers: list[tuple[type[Exception] | int, Callable[[Request, Exception], Response]]] = [
        (ReaderError, _answer),
        (HTTPException, _from_http),
        (RequestValidationError, _from_validation),
        (500, _from_bug),
    ]
    for kind, handler in answers:
        app.add_exception_handler(kind, handler)


def _answer(request: Request, error: Exception) -> Response:
    """The error in the shape the client reads."""
    assert isinstance(error, ReaderError)
    if isinstance(error, ResultsUnreadable):
        # The file is opened anew next time: it may have been mended.
        log.error("%s", error, exc_info=error.__cause__)
        request.app.state.library.forget(request.path_params.get("run", ""))
    helps = isinstance(error, NotFound | BadQuery) and not isinstance(error, RunNotFound)
    about = request.path_params.get("run", "") if helps else ""
    page = ErrorPage(error.status, error.title, error.fact, error.remedy, about)
    if request.url.path.startswith("/api/"):
        body = {"status": page.status, "title": page.title, "message": page.fact, "remedy": page.remedy}
        return JSONResponse({"error": body}, page.status)
    if wants_fragment(request):
        template = request.app.state.environment.get_template("_error.html")
        return Response(template.render(**page.__dict__), page.status, media_type="text/html")
    return render(request, page, page.status)


def _from_http(request: Request, error: Exception) -> Response:
    """Routes that do not exist and methods that are not allowed."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        fact = f"There is no page at {request.url.path}."
        return _answer(request, NotFound(fact, remedy="Start from the home page."))
    refusal = ReaderError(f"{error.detail}.", remedy="Go back and use the page's own links and forms.")
    refusal.status = error.status_code
    return _answer(request, refusal)


def _from_validation(request: Request, error: Exception) -> Response:
    """Parameters of the wrong kind, each named."""
    assert isinstance(error, RequestValidationError)
    parts = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    remedy = "Correct the address, or start again from the list without filters."
    return _answer(request, BadQuery(f"{'; '.join(parts)}.", remedy=remedy))


def _from_bug(request: Request, error: Exception) -> Response:
    """Whatever is our own fault; the server writes the traceback to its log."""
    problem = ReaderError(
        f"The explorer made a mistake ({type(error).__name__}).",
        remedy="Other pages still work. The log of `crossdiff serve` has the details; please report them.",
    )
    problem.status, problem.title = 500, "Something broke"
    return _answer(request, problem)
