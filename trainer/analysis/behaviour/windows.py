"""Cuts compared text into short windows, and names what is in each: words, corpus part, language, place in a chat."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from trainer.analysis.behaviour.divergence_ratio import Units
from trainer.analysis.behaviour.span_table import SpanTable
from trainer.analysis.per_feature.firings import SequencePartition
from trainer.analysis.rows.texts import Texts

WINDOW = 12
"""Spans in a window: short enough for one thing, long enough to hold words."""
MIN_GROUPS = 4
"""Groups of documents that must have a candidate: fewer say nothing about text in general."""
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{2}")
"""Two characters of a script without spaces, which stand for a word."""
ANSWER = b"Assistant: "
QUESTION = b"User: "
OPENING_BYTES = 8
"""A window that begins a turn has a span so near after the turn's header."""


class Candidate(NamedTuple):
    """A property of windows."""

    kind: str
    """word: a word in it; after: a word before it in its sequence; corpus; language; place."""
    name: str


@dataclass(frozen=True)
class TextWindows:
    """Windows of the compared text. Axes: U windows, N spans, C candidates."""

    units: Units
    first: np.ndarray
    """First span of each window, int64 [U]."""
    stop: np.ndarray
    """One past its last span, int64 [U]."""
    candidates: list[Candidate]
    """Properties that windows of MIN_GROUPS or more groups of documents have [C]."""
    members: sp.csr_matrix
    """Which windows have each property, bool [C, U]."""

    def window_of_span(self) -> np.ndarray:
        """The window of each span, int64 [N]."""
        return np.repeat(np.arange(len(self.first)), self.stop - self.first)


def cut_windows(
    spans: SpanTable, texts: Texts, partitions: tuple[SequencePartition, ...], group_of: np.ndarray
) -> TextWindows:
    """Windows of all spans; `group_of` is the group of documents of each sequence."""
    order = np.lexsort((spans.byte_start, spans.sequence))
    assert (order == np.arange(len(order))).all(), "spans are by sequence and byte"
    sequences, begin = np.unique(spans.sequence, return_index=True)
    count = np.diff(np.append(begin, len(spans.sequence)))
    starts = [np.arange(at, at + size, WINDOW) for at, size in zip(begin, count, strict=True)]
    first = np.concatenate([np.zeros(0, np.int64), *starts])
    stop = np.append(first[1:], len(spans.sequence))
    measured = spans.apart, spans.reference, spans.control
    sums = [np.add.reduceat(values, first) if len(first) else values for values in measured]
    group = np.unique(group_of[spans.sequence[first]], return_inverse=True)[1] if len(first) else np.zeros(0, np.int64)
    units = Units(sums[0], sums[1], group, sums[2])
    found: dict[Candidate, list[int]] = defaultdict(list)
    window_of = {int(one): np.flatnonzero(spans.sequence[first] == one) for one in sequences}
    for sequence, windows in window_of.items():
        bounds = spans.byte_start[first[windows]], spans.byte_end[stop[windows] - 1]
        for candidate, number in _properties(sequence, *bounds, texts, partitions):
            found[candidate].append(int(windows[number]))
    return _frequent(TextWindows(units, first, stop, [], sp.csr_matrix((0, len(first)))), found)


def _frequent(windows: TextWindows, found: dict[Candidate, list[int]]) -> TextWindows:
    """The windows with those candidates that enough groups have."""
    group = windows.units.group
    kept = {one: sorted(set(at)) for one, at in found.items() if len(set(group[at])) >= MIN_GROUPS}
    indices = np.concatenate([np.zeros(0, np.int64), *(np.array(at) for at in kept.values())])
    start = np.cumsum([0, *(len(at) for at in kept.values())])
    members = sp.csr_matrix((np.ones(len(indices), bool), indices, start), (len(kept), len(group)))
    return TextWindows(windows.units, windows.first, windows.stop, list(kept), members)


def _properties(
    sequence: int, starts: np.ndarray, ends: np.ndarray, texts: Texts, partitions: tuple[SequencePartition, ...]
) -> Iterator[tuple[Candidate, int]]:
    """Candidates of a sequence's windows, given by the bytes of their bounds, with the number of the window."""
    data = texts.data[texts.text_start[sequence] : texts.text_start[sequence + 1]].tobytes()
    for word, byte in _words(data):
        at = int(np.searchsorted(ends, byte, side="right"))
        if at < len(starts) and byte >= starts[at]:
            yield Candidate("word", word), at
        yield from ((Candidate("after", word), later) for later in range(at + 1, len(starts)))
    for partition in partitions:
        name = partition.names[partition.part[sequence]]
        yield from ((Candidate(partition.kind, name), number) for number in range(len(starts)))
    for _, start, end in texts.template[texts.template[:, 0] == sequence].tolist():
        place = {ANSWER: "the beginning of answers", QUESTION: "the beginning of questions"}.get(data[start:end])
        at = int(np.searchsorted(ends, end, side="right"))
        if place is not None and at < len(starts) and starts[at] <= end + OPENING_BYTES:
            yield Candidate("place", place), at


def _words(data: bytes) -> Iterator[tuple[str, int]]:
    """Words of a text in lower case, each with the byte where it begins."""
    text = data.decode("utf-8", "replace")
    character, byte = 0, 0
    for match in sorted((*WORD.finditer(text), *UNSPACED.finditer(text)), key=lambda one: one.start()):
        word = match[0].casefold()
        if len(word) < 2 or (len(word) > 2 and UNSPACED.search(word)):
            continue
        byte += len(text[character : match.start()].encode())
        character = match.start()
        yield word, byte
