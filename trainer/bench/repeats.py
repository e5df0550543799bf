"""Summaries of repeated measurements, and interleaved timing of several actions."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Repeats:
    """Median and range of several measurements."""

    median: float
    least: float
    most: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Repeats":
        """Median, smallest and largest of at least one value."""
        return cls(median(values), min(values), max(values))


def time_interleaved(
    actions: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm: bool = False,
) -> dict[str, list[float]]:
    """Seconds of every action in every round.

    A round runs every action once, so that other load on the machine affects all of them equally. With `warm` each
    action runs twice in a row and the second run counts: its caches then hold its own data.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            if warm:
                action()
            began = clock()
            action()
            seconds[name].append(clock() - began)
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Quotients round by round. Raises ValueError when the lengths differ."""
    return [numerator / denominator for numerator, denominator in zip(numerators, denominators, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed (nearest rank); share in 0 to 1."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
