"""Puts how much the sources of a run tell of each other into the first sentence of its overview."""

from collections.abc import Sequence

from app.results.runs.predictability import Predictability, Told
from app.web.languages import language_name

SPELT_OUT = 4
"""Sources that the sentence spells out; of more, it names the extremes."""


def first_sentence(measured: Sequence[Predictability]) -> str | None:
    """How much of each source the others tell; None where nothing is measured.

    A language or corpus part is named as the one least told of only if its interval lies below those of all others.
    """
    by_all = list({one.source: one for one in reversed(measured)}.values())[::-1]
    if not by_all:
        return None
    if len(by_all) > SPELT_OUT:
        least, *_, most = sorted(by_all, key=lambda one: one.whole.r2)
        return (
            f"Linearly, all other sources together tell from {interval(least.whole)} of the variance ({least.source}) "
            f"to {interval(most.whole)} ({most.source})."
        )
    together = len(by_all) > 2
    clauses = [f"{' and '.join(one.given)} {interval(one.whole)} of {one.source}'s{_least(one)}" for one in by_all[1:]]
    first = by_all[0]
    verb = "together tell" if together else "tells"
    opening = f"{' and '.join(first.given)} {verb} {interval(first.whole)} of {first.source}'s variance linearly"
    return ", ".join([opening + _least(first), *clauses]) + "."


def interval(told: Told) -> str:
    """A share with its interval, such as `59 % [58, 60]`."""
    r2, low, high = (round(100 * value) for value in (told.r2, told.low, told.high))
    return f"{r2} % [{low}, {high}]"


def _least(one: Predictability) -> str:
    if one.least is None:
        return ""
    kind, part = one.least
    return f" (least in {language_name(part.name) if kind == 'language' else part.name}: {interval(part)})"
