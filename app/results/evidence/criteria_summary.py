"""Tests made: every test of a run's claims, with its threshold there and how often it said what."""

from dataclasses import dataclass

from app.results.connection import Results
from app.results.evidence.criteria import QUESTIONS, Criterion, question, refuting_from, thresholds
from app.results.runs.summary import recipe_of


@dataclass(frozen=True)
class CriterionSummary:
    """One test of all claims of a run."""

    __test__ = False

    test: str
    question: Criterion
    lowest: float | None
    """Threshold in this run; where claims have different ones, the smallest. None when it is not known."""
    highest: float | None
    """The largest of them."""
    refuting: float | None
    """From where on it refutes; None where that is its threshold, if at all."""
    said: dict[str, int]
    """Claims by what it said of them; empty where it was not made."""


def criteria_summary(results: Results) -> list[CriterionSummary]:
    """All tests there are words for, and others that the run made."""
    sql = "select test, says, count(*), min(threshold), max(threshold) from evidence group by all order by all"
    said: dict[str, dict[str, int]] = {}
    recipe = recipe_of(results)
    found: dict[str, list[float]] = {test: [value] for test, value in thresholds(recipe).items()}
    refuting = refuting_from(recipe)
    for test, says, count, low, high in results.rows(sql):
        if test not in said:
            found[test] = []
        said.setdefault(test, {})[says] = count
        found[test] += [bound for bound in (low, high) if bound is not None]
    tests = [*QUESTIONS, *(test for test in said if test not in QUESTIONS)]
    return [_made(test, found.get(test, []), refuting.get(test), said.get(test, {})) for test in tests]


def _made(test: str, bounds: list[float], refuting: float | None, said: dict[str, int]) -> CriterionSummary:
    # Nothing that is well is refuted: between sources of one space a larger readout ratio may stand.
    if refuting is not None and bounds and refuting <= min(bounds):
        refuting = None
    return CriterionSummary(test, question(test), min(bounds, default=None), max(bounds, default=None), refuting, said)
