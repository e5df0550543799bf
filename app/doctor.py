"""Checks whether the explorer can work on this machine, and formats all checks as one table."""

from collections.abc import Iterable
from pathlib import Path

import httpx
import sqlalchemy as sa
from alembic.migration import MigrationContext

from app.database.engine import database_url, head, open_database
from app.errors import ReaderError
from app.server import PortInUse, explorer_responds, explorer_url, require_free_port
from app.settings import Settings
from app.web.templates import missing_assets
from trainer.resources.doctor import Finding, State

SIGNS = {State.FINE: "ok", State.NOTE: "note", State.BROKEN: "FAIL"}


def check_explorer(settings: Settings) -> list[Finding]:
    """Check page assets, labels database, inference worker and port."""
    return [_assets(settings), _labels(settings), _worker(settings), _port(settings)]


def format_table(findings: Iterable[Finding]) -> str:
    """One line per finding: sign, subject, fact, remedy."""
    rows = list(findings)
    width = max(len(row.what) for row in rows)
    return "\n".join(f"{SIGNS[row.state]:<4}  {row.what:<{width}}  {_sentence(row)}" for row in rows)


def _sentence(finding: Finding) -> str:
    return f"{finding.fact}. {finding.remedy}" if finding.remedy else finding.fact


def _assets(settings: Settings) -> Finding:
    missing = missing_assets(settings.frontend)
    if missing:
        return Finding("assets", f"missing in node_modules: {', '.join(missing)}", State.BROKEN, "Run `make setup`.")
    return Finding("assets", f"scripts and styles in {settings.frontend / 'node_modules'}")


def _labels(settings: Settings) -> Finding:
    """Check that the labels database responds and has the current schema; creates nothing."""
    what = "labels"
    try:
        url = sa.make_url(database_url(settings))
        if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
            return Finding(what, f"{url.database} will be created when the explorer starts", State.NOTE)
        engine = open_database(url.render_as_string(hide_password=False))
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        engine.dispose()
    except ReaderError as error:
        return Finding(what, str(error), State.BROKEN)
    except sa.exc.SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0].rstrip(".")
        return Finding(what, cause, State.BROKEN, "Check CROSSDIFF_DATABASE_URL and that the server runs.")
    where = url.render_as_string(hide_password=True)
    if current != head():
        return Finding(what, f"{where} will be brought up to date when the explorer starts", State.NOTE)
    return Finding(what, f"{where} is up to date")


def _worker(settings: Settings) -> Finding:
    if settings.worker_url is None:
        return Finding("worker", "starts automatically at the first steering request")
    try:
        answer = httpx.get(f"{settings.worker_url}/healthz", timeout=3)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "Start it with `crossdiff worker`, or correct CROSSDIFF_WORKER_URL."
        return Finding("worker", f"{settings.worker_url} does not answer ({error})", State.BROKEN, remedy)
    if answer.status_code != 200:
        fact = f"{settings.worker_url} answers {answer.status_code}"
        return Finding("worker", fact, State.BROKEN, "Check that CROSSDIFF_WORKER_URL points to a worker.")
    return Finding("worker", f"{settings.worker_url} answers")


def _port(settings: Settings) -> Finding:
    try:
        require_free_port(settings)
    except PortInUse as error:
        return Finding("port", str(error), State.FINE if explorer_responds(settings) else State.NOTE)
    return Finding("port", f"{explorer_url(settings)} is free")
