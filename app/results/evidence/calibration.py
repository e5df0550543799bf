"""Reliability of a run's verdicts, by owner: false claims that the rule supports, and true ones that it does not."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from app.results.connection import Results
from app.results.evidence.criteria import thresholds
from app.results.runs.summary import ENOUGH_RETURNED, misses_much, recipe_of

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
    like_noise: int
    """Undecided claims that fire hardly more strongly than noise would make them."""
    fdr: float | None
    """Largest expected share of noise among claims as strong as a supported one; None without a noise null."""


@dataclass(frozen=True)
class NullClaims:
    """Claims about one source that are false by construction."""

    kind: str
    """noise, or a kind of placebo: isotropic, whitened."""
    rows: int
    """Rows that the null was trained on, or the placebos were judged on."""
    claims: int
    judged: int
    """Claims for which both the probe ratio and the excess are known."""
    supported: int
    excess_95: float | None
    """95 % quantile of the excess of the judged claims; None for placebos."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the supported share."""
        return interval(self.supported, self.claims)


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
class OwnerReliability:
    """How often the rule errs on claims about one source."""

    owner: str
    claims: int
    """Of the run, of living features."""
    supported: int
    """Of these."""
    noise: NullClaims | None
    placebos: tuple[NullClaims, ...]
    returned: int
    """Concepts planted in this source alone that came back as a feature of it."""
    returned_supported: int
    """Of these, concepts whose claim is supported: right, each of them."""

    @property
    def power(self) -> float | None:
        """Share of the true claims that are supported; None if too few planted concepts came back to tell."""
        return self.returned_supported / self.returned if self.returned >= ENOUGH_RETURNED else None

    @property
    def weak(self) -> bool:
        """Whether the rule misses so many true claims of this source that few supported ones say nothing."""
        return misses_much(self.returned, self.returned_supported)

    @property
    def caution(self) -> str | None:
        """What to keep in mind where few of its claims are supported; None if the rule misses few true ones."""
        if not self.weak:
            return None
        return (
            f"Claims for {self.owner} can't be judged well: {self.returned_supported} of {self.returned} planted "
            "concepts that came back were supported."
        )

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share of true claims that are supported."""
        return interval(self.returned_supported, self.returned)


@dataclass(frozen=True)
class VerdictReliability:
    """Counts of verdicts, with the nulls and spike-ins that say how far to trust them."""

    verdicts: Verdicts
    rows: int
    """Rows that the run analysed, to compare with those of the nulls."""
    excess_limit: float | None
    """Excess that a supported claim must exceed."""
    owners: tuple[OwnerReliability, ...]
    """By source; empty without calibration."""
    spike_ins: tuple[SpikeIn, ...]

    @property
    def calibrated(self) -> bool:
        """Whether anything is known of the run's errors."""
        return bool(self.owners)

    @property
    def planted_in(self) -> list[str]:
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
    """Reads the verdict counts, nulls and spike-ins of a run."""
    (rows,) = results.row("select max(round(firings / density)) from feature where isfinite(1 / density)") or (None,)
    (limit,) = results.row("select max(threshold) from evidence where test = 'excess'") or (None,)
    limit = thresholds(recipe_of(results)).get("excess") if limit is None else limit
    spike_ins = _spike_ins(results)
    return VerdictReliability(_verdicts(results), int(rows or 0), limit, _owners(results, spike_ins), spike_ins)


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
            count(*) filter (where verdict = 'undecided'),
            count(*) filter (where verdict = 'undecided' and kind = 'noise'),
            max(fdr) filter (where verdict = 'supported')
        from feature where verdict not in ('', 'untested') and firings > 0
        """
    )
    return Verdicts(*(row or (0, 0, 0, 0, 0, None)))


def _owners(results: Results, spike_ins: tuple[SpikeIn, ...]) -> tuple[OwnerReliability, ...]:
    """Of every source that a null or a spike-in is about."""
    nulls: dict[int, list[NullClaims]] = {}
    sql = "select source, kind, rows, claims, judged, supported, excess_95 from null_claims order by source, kind"
    for source, *rest in results.rows(sql):
        nulls.setdefault(source, []).append(NullClaims(*rest))
    counts = {
        owner: (claims, supported)
        for owner, claims, supported in results.rows(
            """
            select owner, count(*), count(*) filter (where verdict = 'supported')
            from feature where verdict not in ('', 'untested') and firings > 0 group by owner
            """
        )
    }
    found = []
    for source in results.sources:
        mine = nulls.get(source.source, [])
        planted = [one for one in spike_ins if one.owner == source.name]
        if mine or planted:
            found.append(
                OwnerReliability(
                    source.name,
                    *counts.get(source.name, (0, 0)),
                    next((one for one in mine if one.kind == "noise"), None),
                    tuple(one for one in mine if one.kind != "noise"),
                    sum(one.as_claimed for one in planted),
                    sum(one.supported for one in planted),
                )
            )
    return tuple(found)


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
