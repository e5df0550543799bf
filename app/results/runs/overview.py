"""Bins and counts a whole run in the database, so that its size does not slow the page."""

from collections import defaultdict
from dataclasses import dataclass

from app.results.connection import Results

SHARE_BINS = 50
DENSITY_BINS_PER_DECADE = 4
KNOWN_MEASURES = (
    "variance_explained",
    "variance_explained_per_row",
    "l0",
    "dead_share",
    "dense_share",
    "rows",
    "loss_recovered_zero",
    "loss_recovered_mean",
    "cross_entropy",
    "cross_entropy_reconstruction",
    "cross_entropy_mean",
    "cross_entropy_zero",
    "kl_reconstruction",
    "kl_mean",
    "kl_zero",
    "positions_replaced",
)
"""Measures on held-out rows, in display order: the crosscoder's own, then its effect on the models."""


TEXT_PARTS = 8
"""Corpus parts, and languages, told at most."""


@dataclass(frozen=True)
class HistogramBin:
    """One bin of a histogram over features, for one owner."""

    low: float
    high: float
    owner: str
    count: int


@dataclass(frozen=True)
class VerdictCount:
    """Number of living features of one owner with one verdict and kind of difference."""

    owner: str
    verdict: str
    """Empty where the feature makes no claim."""
    kind: str | None
    """absent, weaker, analogue or noise; None where it is not known."""
    count: int


@dataclass(frozen=True)
class GroupCount:
    """A group of the dictionary, with how many of its features are alive."""

    group: str
    features: int
    alive: int
    """Features that fired on any row analysed."""
    alive_share: float | None
    """Part of them that fired on held-out rows, 0 to 1."""
    l0: float | None
    """Features of the group active per held-out row, on average."""


@dataclass(frozen=True)
class TextPart:
    """A corpus part or language, with the features that fire mostly on it."""

    name: str
    features: int
    claims: int
    """Of these features, those claimed for one source alone."""


@dataclass(frozen=True)
class TrainingCurve:
    """One training metric by step."""

    measure: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """A measure on held-out rows."""

    measure: str
    whole: float | None
    sources: tuple[float | None, ...]
    """Per source, in order."""

    @property
    def of_whole(self) -> bool:
        """Whether it applies to the whole dictionary only, not to single sources."""
        return self.whole is not None and all(value is None for value in self.sources)


@dataclass(frozen=True)
class Coverage:
    """How much of one corpus part could be aligned."""

    corpus: str
    measures: dict[str, float]
    """Over all sources."""
    tokens: tuple[float | None, ...]
    """Tokens read per source, in order."""
    plain_chats: tuple[float | None, ...]
    """Chats per source that its template could not render; they were read as plain text."""
    not_finite: tuple[float | None, ...]
    """Tokens per source whose activations are NaN or infinite; they were left out."""


@dataclass(frozen=True)
class CalibrationMeasure:
    """One measure of the run with spike-ins."""

    kind: str
    measure: str
    value: float


def norm_histogram(results: Results) -> list[HistogramBin]:
    """Histogram of living features by decoder norm, 0 to 1, per owner.

    For two sources the relative norm of the second one; otherwise the norm share of the last source.
    """
    column = "relative_norm" if len(results.sources) == 2 else "norm_share"
    rows = results.rows(
        f"""
        select least(floor(s.{column} * $bins), $bins - 1)::integer, f.owner, count(*)
        from feature f join feature_source s on s.feature = f.feature and s.source = $last
        where f.firings > 0 and s.{column} is not null group by all order by all
        """,  # noqa: S608 - one of our two columns
        bins=SHARE_BINS,
        last=results.sources[-1].source,
    )
    return [HistogramBin(index / SHARE_BINS, (index + 1) / SHARE_BINS, owner, count) for index, owner, count in rows]


def share_of_relative(relative: float) -> float:
    """Converts a relative norm to the norm share, for two sources; monotonic."""
    ratio = 2 * relative if relative <= 0.5 else 1 / max(2 * (1 - relative), 1e-12)
    return ratio / (1 + ratio)


def density_histogram(results: Results) -> list[HistogramBin]:
    """Histogram of living features by the decimal logarithm of their density, per owner."""
    rows = results.rows(
        """
        select floor(log10(density) * $bins)::integer, owner, count(*)
        from feature where density > 0 group by all order by all
        """,
        bins=DENSITY_BINS_PER_DECADE,
    )
    width = DENSITY_BINS_PER_DECADE
    return [HistogramBin(index / width, (index + 1) / width, owner, count) for index, owner, count in rows]


def counts(results: Results) -> list[VerdictCount]:
    """Number of living features per owner, verdict and kind."""
    sql = "select owner, verdict, kind, count(*) from feature where firings > 0 group by all order by all"
    rows = results.rows(sql)
    return [VerdictCount(*row) for row in rows]


def groups(results: Results) -> list[GroupCount]:
    """The groups of the dictionary, in order of their features."""
    rows = results.rows(
        """
        select group_name, count(*), count(*) filter (where firings > 0),
            (select max(value) from evaluation where measure = 'alive_share.' || group_name),
            (select max(value) from evaluation where measure = 'l0.' || group_name)
        from feature group by group_name order by min(feature)
        """
    )
    return [GroupCount(*row) for row in rows]


def evaluation(results: Results) -> list[Evaluation]:
    """Every measure on held-out rows, in display order."""
    found: defaultdict[str, dict[int | None, float]] = defaultdict(dict)
    for source, measure, value in results.rows("select source, measure, value from evaluation"):
        found[measure][source] = value
    first = {measure: index for index, measure in enumerate(KNOWN_MEASURES)}
    ordered = sorted(found, key=lambda measure: (first.get(measure, len(first)), measure))
    return [
        Evaluation(measure, found[measure].get(None), tuple(found[measure].get(s.source) for s in results.sources))
        for measure in ordered
    ]


def training_curves(results: Results) -> list[TrainingCurve]:
    """All training metrics, one curve each."""
    found: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, measure, value in results.rows("select step, measure, value from training_metric order by measure, step"):
        found[measure].append((step, value))
    return [
        TrainingCurve(measure, tuple(step for step, _ in points), tuple(value for _, value in points))
        for measure, points in found.items()
    ]


def coverage(results: Results) -> list[Coverage]:
    """How much text could be aligned, per corpus part."""
    found: defaultdict[str, dict[tuple[int | None, str], float]] = defaultdict(dict)
    for corpus, source, measure, value in results.rows(
        "select corpus, source, measure, value from coverage order by 1"
    ):
        found[corpus][source, measure] = value
    return [
        Coverage(
            corpus,
            {measure: value for (source, measure), value in values.items() if source is None},
            *(
                tuple(values.get((source.source, measure)) for source in results.sources)
                for measure in ("tokens", "plain_chats", "not_finite")
            ),
        )
        for corpus, values in found.items()
    ]


def calibration(results: Results) -> list[CalibrationMeasure]:
    """Measures of the run with spike-ins; empty until the run is calibrated."""
    rows = results.rows("select kind, measure, value from calibration order by kind, measure")
    return [CalibrationMeasure(*row) for row in rows]


def text_parts(results: Results) -> dict[str, tuple[TextPart, ...]]:
    """By kind, corpus or language, the parts on which most features fire mostly, the most first."""
    found = {}
    for kind in ("corpus", "language"):
        rows = results.rows(
            f"""
            select main_{kind}, count(*), count(*) filter (where verdict <> '') from feature
            where firings > 0 and main_{kind} is not null group by all order by 2 desc, 1 limit $most
            """,  # noqa: S608 - one of two columns
            most=TEXT_PARTS,
        )
        found[kind] = tuple(TextPart(*row) for row in rows)
    return found
