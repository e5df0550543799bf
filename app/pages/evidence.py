"""Explains how claims of exclusivity are judged, criterion by criterion, with counts of this run."""

from dataclasses import dataclass
from typing import ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.results.evidence import criteria
from app.results.evidence.criteria_summary import CriterionSummary, criteria_summary
from app.web.dependencies import RunResults, Runs
from app.web.templates import render
from app.web.validators import page_tag

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class EvidencePage:
    """The criteria of a run."""

    template: ClassVar[str] = "evidence.html"
    fragments: ClassVar[dict[str, str]] = {}

    run: str
    introduction: str
    verdicts: dict[str, str]
    kinds: dict[str, str]
    effects: dict[str, str]
    limits: tuple[str, ...]
    tests: list[CriterionSummary]


@router.get("/runs/{run}/evidence")
def show_evidence(request: Request, run: str, results: RunResults, catalog: Runs) -> HTMLResponse:
    """The criteria, with the thresholds of this run."""
    tag = page_tag(request, results.file)
    page = EvidencePage(
        run=run,
        introduction=criteria.INTRODUCTION,
        verdicts=criteria.VERDICTS,
        kinds=criteria.KINDS,
        effects=criteria.EFFECTS_IN_WORDS,
        limits=criteria.LIMITS,
        tests=catalog.cached(run, "criteria", criteria_summary),
    )
    return render(request, page, tag=tag)
