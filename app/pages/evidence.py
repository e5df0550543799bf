"""Evidence: how claims of exclusivity are judged in a run, test by test, with what each test said there."""

from dataclasses import dataclass
from typing import ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.results.evidence import criteria
from app.results.evidence.criteria_summary import CriterionSummary, criteria_summary
from app.web.dependencies import RunResults, Runs
from app.web.templates import render

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class EvidencePage:
    """The rule of a run."""

    template: ClassVar[str] = "evidence.html"
    fragments: ClassVar[dict[str, str]] = {}

    run: str
    introduction: str
    verdicts: dict[str, str]
    kinds: dict[str, str]
    sayings: dict[str, str]
    limits: tuple[str, ...]
    tests: list[CriterionSummary]


@router.get("/runs/{run}/evidence")
def show_evidence(request: Request, run: str, results: RunResults, library: Runs) -> HTMLResponse:
    """The rule, with the thresholds of this run."""
    del results  # asked for, so that a run without results is answered as everywhere
    page = EvidencePage(
        run=run,
        introduction=criteria.INTRODUCTION,
        verdicts=criteria.VERDICTS,
        kinds=criteria.KINDS,
        sayings=criteria.SAYINGS,
        limits=criteria.LIMITS,
        tests=library.remember(run, "tests", criteria_summary),
    )
    return render(request, page)
