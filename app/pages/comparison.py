"""Shows which findings of a run hold in another run."""

from dataclasses import dataclass
from typing import ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.results.owners import Owner, owners_of
from app.results.runs.comparison import RunComparison, compare_runs, found_again
from app.web.dependencies import OtherResults, RunResults, Runs
from app.web.templates import render
from app.web.validators import page_tag

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class ComparisonPage:
    """Findings of two runs, side by side."""

    template: ClassVar[str] = "comparison.html"
    fragments: ClassVar[dict[str, str]] = {}

    run: str
    other: str
    owners: dict[str, Owner]
    comparison: RunComparison
    again: tuple[int, int]
    """Findings of either that hold in the other."""


@router.get("/runs/{run}/compare/{other}")
def show_comparison(request: Request, results: RunResults, others: OtherResults, catalog: Runs) -> HTMLResponse:
    """Findings of two runs."""
    tag = page_tag(request, f"{results.file}.{others.file}")
    found = compare_runs(results, others)
    owners = {**catalog.cached(others.run, "owners", owners_of), **catalog.cached(results.run, "owners", owners_of)}
    page = ComparisonPage(results.run, others.run, owners, found, (found_again(found.forth), found_again(found.back)))
    return render(request, page, tag=tag)
