"""Lists the runs by the sources they compare, and those in progress."""

from dataclasses import dataclass
from typing import ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.results.runs.summary import Comparison, Run, all_runs, comparisons
from app.web.dependencies import Runs
from app.web.templates import render

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class HomePage:
    """All comparisons with their runs; HTMX asks for the live list alone."""

    template: ClassVar[str] = "home.html"
    fragments: ClassVar[dict[str, str]] = {"runs": "_home_runs.html"}

    live: list[Run]
    """Runs under way."""
    comparisons: list[Comparison]
    """All other runs, by what they compare."""


@router.get("/")
def show_home(request: Request, catalog: Runs) -> HTMLResponse:
    """Comparisons and their runs, with live progress."""
    runs = all_runs(catalog)
    live = [run for run in runs if run.status == "running"]
    return render(request, HomePage(live, comparisons([run for run in runs if run.status != "running"])))
