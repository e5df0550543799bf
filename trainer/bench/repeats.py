"""Spread: one thing measured several times, and ratios of two things that were measured in turns."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Repeats:
    """The middle of several measurements, and the ends."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Repeats":
        """Median, smallest and largest of at least one value."""
        return cls(median(values), min(values), max(values))


def in_turns(
    actions: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    again: bool = False,
) -> dict[str, list[float]]:
    """Seconds that each action took in every round.

    A round runs every action once, so that whatever else the machine does slows all of them alike. With `again` each
    is done twice and the second time counts: what follows upon itself need not clear the caches of another's work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            if again:
                action()
            began = clock()
            action()
            seconds[name].append(clock() - began)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The one over the other, round by round."""
    return [one / other for one, other in zip(above, below, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed (nearest rank); share in 0 to 1."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
