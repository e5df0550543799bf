"""Lists the runs by the sources they compare, and those in progress."""

import contextlib
from dataclasses import dataclass
from typing import ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.errors import ReaderError
from app.results.connection import RunCatalog
from app.results.runs.summary import Comparison, Run, all_runs, comparisons
from app.web.dependencies import Runs
from app.web.headline_sentence import sentence_of
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
    sentences: dict[str, str]
    """What was found, by run: of the first with results of every comparison."""


@router.get("/")
def show_home(request: Request, catalog: Runs) -> HTMLResponse:
    """Comparisons and their runs, with live progress."""
    runs = all_runs(catalog)
    live = [run for run in runs if run.status == "running"]
    others = comparisons([run for run in runs if run.status != "running"])
    return render(request, HomePage(live, others, _sentences(catalog, others)))


def _sentences(catalog: RunCatalog, found: list[Comparison]) -> dict[str, str]:
    """Of the first run with results of every comparison; results that cannot be read have none."""
    sentences = {}
    for comparison in found:
        run = next((one.run for one in comparison.runs if one.headline is not None), None)
        if run is not None:
            with contextlib.suppress(ReaderError):
                sentences[run] = catalog.kept(run, "headline_sentence", sentence_of)
    return sentences
