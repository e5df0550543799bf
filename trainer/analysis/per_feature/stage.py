"""Alone: everything that is asked of a feature by itself, a range of features at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from trainer.analysis.per_feature.contexts import keep
from trainer.analysis.per_feature.firings import RowMetadata, measure
from trainer.analysis.per_feature.histogram import histogram
from trainer.analysis.per_feature.windows import Windows
from trainer.analysis.rows.codes import FeatureCodes
from trainer.recipe.measuring import ContextsRecipe

WORKERS = 2
"""Ranges looked at side by side: NumPy lets go of Python's lock for most of it."""


class Answers(NamedTuple):
    """What is known of a range of features."""

    features: int
    """How many they are."""
    tables: list[tuple[str, Mapping[str, Any]]]
    """Columns by table, in the order in which they are to be written."""
    measures: dict[str, np.ndarray]
    """See `firings.measure`."""
    sequences: np.ndarray
    """Sequences that are shown, int64, rising."""


def ask(stored: FeatureCodes, metadata: RowMetadata, windows: Windows | None, recipe: ContextsRecipe) -> Answers:
    """Ask everything of a range of features."""
    places = metadata.places
    piece = stored.placed(None if places is None else places.of_row)
    tables: list[tuple[str, Mapping[str, Any]]] = [("histogram", histogram(piece))]
    sequences = np.zeros(0, np.int64)
    if places is not None:
        tables += [(f"feature_{p.kind}", p.columns(piece.first, p.firings(piece, places))) for p in metadata.parts]
    if windows is not None:
        kept = keep(piece, windows.places, recipe)
        tables.append(("firing", windows.columns(piece, kept)))
        sequences = np.unique(windows.places.sequence[kept.place])
    return Answers(piece.features, tables, measure(piece, metadata), sequences)


def side_by_side(question: Callable[[FeatureCodes], Answers], pieces: Iterable[FeatureCodes]) -> Iterator[Answers]:
    """The answers to a question about every range in order; few ranges are in memory at a time."""
    waiting: deque[Future[Answers]] = deque()
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="alone") as workers:
        for piece in pieces:
            waiting.append(workers.submit(question, piece))
            if len(waiting) >= WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
