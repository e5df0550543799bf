"""Tells machines whether the explorer is up, whether it can answer, and what it has answered."""

from collections import Counter

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.results.runs.summary import all_runs
from app.web.dependencies import AppSettings, CurrentLabels, Runs
from app.web.metrics import Metrics
from app.web.templates import missing_assets

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
def is_up() -> dict[str, str]:
    """Liveness: the process responds."""
    return {"status": "ok"}


@router.get("/readyz")
def is_ready(settings: AppSettings, labels: CurrentLabels) -> JSONResponse:
    """Readiness: 503 with the reasons if pages cannot be served completely."""
    problems = []
    if missing := missing_assets(settings.frontend):
        problems.append(f"Scripts and styles are not installed ({', '.join(missing)}). Run `make setup`.")
    if not labels.can_be_read():
        problems.append("The labels database cannot be read; the log of the explorer gives the reason.")
    body = {"status": "not ready" if problems else "ready", "problems": problems}
    return JSONResponse(body, 503 if problems else 200)


@router.get("/metrics")
def show_metrics(request: Request, catalog: Runs) -> Response:
    """Requests by route, and runs by state, for Prometheus."""
    metrics: Metrics = request.app.state.metrics
    runs = Counter(run.status for run in all_runs(catalog))
    return Response(metrics.text(runs=runs, open_results=catalog.open_files), media_type=CONTENT_TYPE_LATEST)
