"""Reads the text around a feature's firings, as rows of tokens with activations."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from app.errors import BadQuery, NotFound
from app.results.connection import Results, Source
from app.results.features.tokens import Row, SourceTokens, token_rows

BUCKETS = ("top", "q5", "q4", "q3", "q2", "q1", "random")
"""Kinds of kept firings, in the order pages show them."""

KEPT_AT_MOST = 2**31 - 1
"""No limit of the firings that are read."""
SAME_WITHIN = 5
"""Rows on either side of the peak that must be equal for two contexts to count as repeated."""


@dataclass(frozen=True)
class Window:
    """One kept firing with the text around it."""

    sequence: int
    rank: int
    corpus: str
    peak: float
    """Activation at its strongest row, unscaled."""
    rows: list[Row]
    repeats: "tuple[Window, ...]"
    """Further firings on the same words."""

    @property
    def peak_index(self) -> int:
        """Index of the strongest row."""
        return next((index for index, row in enumerate(self.rows) if row.peak), 0)


@dataclass(frozen=True)
class KeptCount:
    """How many firings of one kind are kept from one part of the corpus."""

    bucket: str
    corpus: str
    count: int


@dataclass(frozen=True)
class Bucket:
    """How many firings of one kind are kept."""

    bucket: str
    count: int


@dataclass(frozen=True)
class WholeSequence:
    """A whole sequence, with the known activations of one feature."""

    sequence: int
    document: int
    corpus: str
    held_out: bool
    rows: list[Row]
    windows: int
    """Kept firings of the feature in it."""


def check_tokens(tokens: str, sources: Sequence[Source]) -> None:
    """Raises BadQuery unless tokens of `both` or of one source are asked for."""
    names = [source.name for source in sources]
    if tokens != "both" and tokens not in names:
        raise BadQuery(f"The run has no source named {tokens!r}.", remedy=f"Show tokens of: both, {', '.join(names)}.")


def kept_counts(results: Results, feature: int) -> list[KeptCount]:
    """Kept firings of a feature, counted by kind and corpus part."""
    counts = Counter(results.rows("select bucket, corpus from firing where feature = $feature", feature=feature))
    return [KeptCount(bucket, corpus, count) for (bucket, corpus), count in sorted(counts.items())]


def bucket_counts(kept: Sequence[KeptCount], corpus: str) -> list[Bucket]:
    """Kinds of firings that are kept, strongest first; `corpus` restricts unless it is empty."""
    counts: Counter[str] = Counter()
    for each in kept:
        if corpus in ("", each.corpus):
            counts[each.bucket] += each.count
    return [Bucket(bucket, counts[bucket]) for bucket in BUCKETS if counts[bucket]]


def kept_windows(
    results: Results, feature: int, bucket: str, corpus: str, *, scale: float, most: int = KEPT_AT_MOST
) -> list[Window]:
    """The strongest kept firings of one kind, `most` at most; those on the same words are grouped under the first."""
    # Sorted here: DuckDB would first copy every token list into the shape it sorts in. Plain lists, because every
    # struct would come as a dict of its own.
    rows = results.rows(
        """
        select sequence, rank, corpus, peak, peak_byte_end, byte_start, "text",
            list_transform(tokens, lambda line: list_transform(line, lambda token: token."text")),
            list_transform(tokens, lambda line: list_transform(line, lambda token: token.byte_end)),
            list_transform(activations, lambda row: row.byte_end),
            list_transform(activations, lambda row: row.activation)
        from firing
        where feature = $feature and bucket = $bucket and ($corpus = '' or corpus = $corpus) and rank < $below
        """,
        feature=feature,
        bucket=bucket,
        corpus=corpus,
        below=most if not corpus else KEPT_AT_MOST,
    )
    windows = []
    for *head, texts, ends, row_ends, values in sorted(rows, key=itemgetter(1))[:most]:
        lines = [SourceTokens(*line) for line in zip(texts, ends, strict=True)]
        windows.append(_window(head, lines, dict(zip(row_ends, values, strict=True)), scale))
    return _without_repeats(windows)


def whole_sequence(results: Results, sequence: int, feature: int, *, scale: float) -> WholeSequence:
    """A sequence with the activations kept of a feature on it. Raises NotFound."""
    found = results.row(
        """select document, corpus, held_out, "text", tokens from sequence where sequence = $sequence""",
        sequence=sequence,
    )
    if found is None:
        raise NotFound(
            f"Run {results.run!r} keeps no sequence {sequence}.", remedy="Open one from the page of a feature."
        )
    document, corpus, held_out, text, tokens = found
    windows = results.rows(
        """
        select byte_start, strlen("text"), activations from firing where feature = $feature and sequence = $sequence
        """,
        feature=feature,
        sequence=sequence,
    )
    activations = {row["byte_end"]: row["activation"] for *_, kept in windows for row in kept}
    known = [(start, start + size) for start, size, _ in windows]
    peak = max(activations, key=lambda end: activations[end], default=None)
    lines = [SourceTokens.from_tokens(each) for each in tokens]
    rows = token_rows(lines, activations, scale=scale, peak=peak, text=text.encode(), known=known)
    return WholeSequence(sequence, document, corpus, held_out, rows, len(windows))


def _window(head: Sequence[Any], lines: Sequence[SourceTokens], activations: dict[int, float], scale: float) -> Window:
    sequence, rank, corpus, peak, peak_end, start, text = head
    rows = token_rows(lines, activations, scale=scale, peak=peak_end, text=text.encode(), start=start)
    return Window(sequence, rank, corpus, peak, rows, ())


def _without_repeats(windows: list[Window]) -> list[Window]:
    """Groups windows with the same words around the peak under the strongest of them."""
    gathered: dict[tuple[str, ...], list[Window]] = {}
    for window in windows:
        gathered.setdefault(_around_peak(window), []).append(window)
    return [
        Window(first.sequence, first.rank, first.corpus, first.peak, first.rows, tuple(others))
        for first, *others in gathered.values()
    ]


def _around_peak(window: Window) -> tuple[str, ...]:
    """The words near the peak, case and spaces aside."""
    index = window.peak_index
    near = window.rows[max(0, index - SAME_WITHIN) : index + SAME_WITHIN + 1]
    return tuple("".join(token.text for token in row.tokens[0]).strip().lower() for row in near)
