"""Computes all per-feature measures and tables, one range of features at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from trainer.analysis.per_feature.contexts import Windows, select_firings
from trainer.analysis.per_feature.firings import RowMetadata, firing_measures
from trainer.analysis.per_feature.histogram import histogram
from trainer.analysis.rows.codes import FeatureCodes
from trainer.recipe.measuring import ContextsRecipe

WORKERS = 2
"""Threads, one range each; NumPy releases the GIL for most of the work."""


class FeatureRangeResults(NamedTuple):
    """Measures and table columns of a range of features."""

    features: int
    """Number of features in the range."""
    tables: list[tuple[str, Mapping[str, Any]]]
    """Columns by table, in the order in which they are to be written."""
    measures: dict[str, np.ndarray]
    """See `firings.firing_measures`."""
    sequences: np.ndarray
    """Sequences with a selected firing, int64, ascending."""


def measure_range(
    stored: FeatureCodes, metadata: RowMetadata, windows: Windows | None, recipe: ContextsRecipe
) -> FeatureRangeResults:
    """Compute everything that concerns one feature at a time, for a range of features."""
    row_order = metadata.row_order
    codes = stored.reordered(None if row_order is None else row_order.position_of_row)
    tables: list[tuple[str, Mapping[str, Any]]] = [("histogram", histogram(codes))]
    sequences = np.zeros(0, np.int64)
    if row_order is not None:
        tables += [
            (f"feature_{partition.kind}", partition.columns(codes.first, partition.firings(codes, row_order)))
            for partition in metadata.partitions
        ]
    if windows is not None:
        kept = select_firings(codes, windows.row_order, recipe)
        tables.append(("firing", windows.columns(codes, kept)))
        sequences = np.unique(windows.row_order.sequence[kept.position])
    return FeatureRangeResults(codes.features, tables, firing_measures(codes, metadata), sequences)


def map_ranges(
    compute: Callable[[FeatureCodes], FeatureRangeResults], ranges: Iterable[FeatureCodes]
) -> Iterator[FeatureRangeResults]:
    """Results of `compute` for every range, in order; at most WORKERS ranges are in memory at a time."""
    pending: deque[Future[FeatureRangeResults]] = deque()
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="features") as workers:
        for codes in ranges:
            pending.append(workers.submit(compute, codes))
            if len(pending) >= WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
