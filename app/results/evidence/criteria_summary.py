"""Counts the results of every criterion over a run's claims, with its thresholds there."""

from dataclasses import dataclass

from app.results.connection import Results
from app.results.evidence.criteria import CRITERIA, Criterion, criterion, refuting_thresholds, thresholds
from app.results.runs.summary import recipe_of


@dataclass(frozen=True)
class CriterionSummary:
    """Results of one criterion over all claims of a run."""

    test: str
    criterion: Criterion
    lowest: float | None
    """Threshold in this run; where claims have different ones, the smallest. None when it is not known."""
    highest: float | None
    """The largest of them."""
    refuting: tuple[float, ...]
    """Second thresholds, from which on it refutes, ascending; empty where it has none of its own."""
    counts: dict[str, int]
    """Claims by the effect it had on them; empty where it was not evaluated."""


def criteria_summary(results: Results) -> list[CriterionSummary]:
    """All criteria in `CRITERIA`, then others that the run evaluated."""
    sql = "select test, says, count(*), min(threshold), max(threshold) from evidence group by all order by all"
    counts: dict[str, dict[str, int]] = {}
    recipe = recipe_of(results)
    bounds_by_test: dict[str, list[float]] = {test: [value] for test, value in thresholds(recipe).items()}
    refuting = refuting_thresholds(recipe)
    for test, says, count, low, high in results.rows(sql):
        if test not in counts:
            bounds_by_test[test] = []
        counts.setdefault(test, {})[says] = count
        bounds_by_test[test] += [bound for bound in (low, high) if bound is not None]
    tests = [*CRITERIA, *(test for test in counts if test not in CRITERIA)]
    return [_summary(test, bounds_by_test.get(test, []), refuting.get(test), counts.get(test, {})) for test in tests]


def _summary(test: str, bounds: list[float], refuting: float | None, counts: dict[str, int]) -> CriterionSummary:
    # A criterion that is met never refutes: between sources of one space a larger probe ratio may stand.
    beyond = set() if refuting is None else {max(refuting, bound) for bound in bounds} or {refuting}
    return CriterionSummary(
        test, criterion(test), min(bounds, default=None), max(bounds, default=None), tuple(sorted(beyond)), counts
    )
