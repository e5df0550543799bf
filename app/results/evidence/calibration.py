"""Reliability of a run's verdicts, from its q-values, null run and spike-ins."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from app.results.connection import Results

OUTCOMES = ("recovered", "as_claimed", "supported")
"""Outcomes of a spike-in, each including the next."""
NORMAL_95 = NormalDist().inv_cdf(0.975)
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Verdicts:
    """Claims of living features by verdict."""

    claims: int
    supported: int
    refuted: int
    undecided: int
    q_value: float | None
    """Largest q-value at which a claim may be supported; None where nothing was tested."""
    expected_false: float | None
    """Supported claims that are expected to be false, at most; None without q-values."""


@dataclass(frozen=True)
class Null:
    """Verdicts of a null run, in which every claim is false."""

    claims: int
    supported: float
    """Share of them, 0 to 1."""

    @property
    def count(self) -> int:
        """How many were supported."""
        return round(self.supported * self.claims)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the supported share."""
        return interval(self.count, self.claims)


@dataclass(frozen=True)
class SpikeIn:
    """Planted concepts of one owner, amplitude and frequency, and how many were recovered."""

    owner: str
    """The source they were planted in, or `shared`."""
    amplitude: float
    """Mean length, in units of the source's typical distance from its mean."""
    frequency: float
    """Share of the rows on which each was added."""
    planted: int
    recovered: int
    """Concepts that some feature represents."""
    as_claimed: int
    """Recovered concepts whose feature has the right owner."""
    supported: int
    """Its claim was judged supported, which is right for those of one source alone."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the supported share."""
        return interval(self.supported, self.planted)


@dataclass(frozen=True)
class VerdictReliability:
    """Counts of verdicts, with the null run and spike-ins that calibrate them."""

    verdicts: Verdicts
    null: Null | None
    spike_ins: tuple[SpikeIn, ...]

    @property
    def calibrated(self) -> bool:
        """Whether the run has a null run or spike-ins."""
        return self.null is not None or bool(self.spike_ins)

    @property
    def owners(self) -> list[str]:
        """Where spike-ins were planted."""
        return list(dict.fromkeys(one.owner for one in self.spike_ins))

    @property
    def frequencies(self) -> list[float]:
        """Frequencies at which they were added, the highest first."""
        return sorted({one.frequency for one in self.spike_ins}, reverse=True)

    def planted(self, *, exclusive: bool) -> SpikeIn | None:
        """All spike-ins of one source alone, or all shared ones, summed; None without any."""
        some = [one for one in self.spike_ins if (one.owner != "shared") == exclusive]
        if not some:
            return None
        sums = [sum(getattr(one, part) for one in some) for part in ("planted", *OUTCOMES)]
        return SpikeIn("" if exclusive else "shared", 0.0, 0.0, *sums)


def verdict_reliability(results: Results) -> VerdictReliability:
    """Reads the verdict counts, null run and spike-ins of a run."""
    return VerdictReliability(_verdicts(results), _null(results), _spike_ins(results))


def interval(count: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `count` in `n` independent trials were seen (E. B. Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, spread = count / n, NORMAL_95**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _verdicts(results: Results) -> Verdicts:
    row = results.row(
        """
        select count(*), count(*) filter (where verdict = 'supported'), count(*) filter (where verdict = 'refuted'),
            count(*) filter (where verdict = 'undecided'), max(q_value) filter (where verdict = 'supported'),
            (select max(threshold) from evidence where test = 'q_value')
        from feature where verdict <> '' and firings > 0
        """
    )
    claims, supported, refuted, undecided, largest, threshold = row or (0, 0, 0, 0, None, None)
    expected = None if largest is None else supported * largest
    return Verdicts(claims, supported, refuted, undecided, threshold, expected)


def _null(results: Results) -> Null | None:
    found = dict(results.rows("select measure, value from calibration where kind = 'null'"))
    return Null(int(found["claims"]), found.get("supported", 0.0)) if found.get("claims") is not None else None


def _spike_ins(results: Results) -> tuple[SpikeIn, ...]:
    names = {source.source: source.name for source in results.sources}
    rows = results.rows(
        """
        select source, amplitude, frequency, sum(planted)::bigint, sum(recovered)::bigint, sum(as_claimed)::bigint,
            sum(supported)::bigint
        from spike_in group by all order by source nulls last, frequency, amplitude
        """
    )
    return tuple(SpikeIn(names.get(source, "shared"), *rest) for source, *rest in rows)
