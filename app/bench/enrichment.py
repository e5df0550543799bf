"""Asks whether the features that one model is said to have fire on the text which that model is known for.

A model that was trained on code should have features of its own for code. The share of a feature's firings on some text
is compared with that of shared features, which no claim is made about. Models without the strength are the null.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from app.results.connection import Results, RunCatalog
from app.settings import Settings
from trainer.bench.machine import Machine
from trainer.bench.report import Report

CODE = (
    r"(?m)(```|^\s*(def |class |import |from \w+ import |#include|public |private |function |const |var |let |SELECT )"
    r"|[;{}]\s*$)"
)
"""Text with a line that looks like code."""
FIRINGS = 50
"""Rows on which a feature must fire."""
LEAST_SHARE = 0.01
"""Share of the rows that a language must have."""
LEAST_FEATURES = 5
"""Features that an owner needs for an interval."""
TINY = 1e-9
"""Least mean share: draws of features that never fire on a text give a large ratio instead of none."""
DRAWS = 2000
HEAD = ("owner", "features", "text", "share", "of shared", "times", "90 % interval")
LEGEND = (
    "Of each owner the claims that are supported or undecided, against shared features: mean share of their firings on "
    "text in a language, or of their stored contexts in sequences with a line that looks like code. Intervals by "
    "bootstrap over features. A model without the strength shows what the ratio is by itself."
)


class Enrichment(NamedTuple):
    """How much more the features of an owner fire on some text than shared ones do."""

    owner: str
    features: int
    text: str
    """A language's code, or `code`."""
    share: float
    shared: float
    times: float
    low: float
    high: float

    def as_row(self) -> tuple[str, ...]:
        """A line of the table."""
        interval = f"{self.low:.2f}–{self.high:.2f}"
        shares = f"{self.share:.4f}", f"{self.shared:.4f}", f"{self.times:.2f}"
        return (self.owner, f"{self.features:,}", self.text, *shares, interval)


def bench_enrichment(run: str) -> Report:
    """The table of a run. Raises RunNotFound, ResultsMissing or ResultsUnreadable."""
    machine = Machine()
    found = enrichment(RunCatalog(Settings.from_environment().runs).results(run))
    return Report(
        "Features of each owner, on what text",
        HEAD,
        tuple(one.as_row() for one in found),
        {"enrichment": [one._asdict() for one in found]},
        (LEGEND, machine.note()),
    )


def enrichment(results: Results) -> list[Enrichment]:
    """Every owner's features on every frequent language but the most frequent, and on code."""
    rows = dict(results.rows("select name, rows from text_part where kind = 'language'"))
    frequent = sorted((name for name in rows if rows[name] >= LEAST_SHARE * sum(rows.values())), key=rows.__getitem__)
    found = []
    for text in [*frequent[-2::-1], "code"]:
        shares = _shares(results, text)
        usual = shares.pop("shared", [])
        found += [one for owner in sorted(shares) if (one := _compared(owner, text, shares[owner], usual)) is not None]
    return found


def _shares(results: Results, text: str) -> dict[str, list[float]]:
    """By owner, the share of each feature's firings on some text."""
    if text == "code":
        sql = """
            select owner, avg(regexp_matches(sequence."text", $text)::int) as share
            from firing join sequence using (sequence) join feature using (feature)"""
    else:
        sql = """
            select owner, coalesce(sum(l.firings) filter (language = $text), 0) / sum(l.firings) as share
            from feature_language l join feature using (feature)"""
    kept = f"where feature.firings >= {FIRINGS} and (owner = 'shared' or verdict in ('supported', 'undecided'))"
    found: dict[str, list[float]] = {}
    for owner, share in results.rows(
        f"{sql} {kept} group by feature, owner order by feature",
        text=CODE if text == "code" else text,
    ):
        found.setdefault(owner, []).append(share)
    return found


def _compared(owner: str, text: str, shares: Sequence[float], usual: Sequence[float]) -> Enrichment | None:
    """The ratio of two mean shares, with its interval; None for few features, or where shared ones never fire there."""
    if min(len(shares), len(usual)) < LEAST_FEATURES or not sum(usual) > 0:
        return None
    generator = np.random.default_rng(0)
    own, shared = (_means(np.array(values), generator) for values in (shares, usual))
    low, high = np.quantile(own / np.maximum(shared, TINY), (0.05, 0.95)).tolist()
    mean, other = float(np.mean(shares)), float(np.mean(usual))
    return Enrichment(owner, len(shares), text, mean, other, mean / other, low, high)


def _means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means of values drawn again [DRAWS]."""
    return np.array([values[generator.integers(len(values), size=len(values))].mean() for _ in range(DRAWS)])
