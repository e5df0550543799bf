"""Measures reconstruction, sparsity and feature densities on held-out rows.

Explained variance has two definitions in the literature, and both are measured: over all rows together, and as the mean
over rows. Of a crosscoder with predictions, a reconstruction is the prediction and what the features add to it;
`variance_predicted` is the share that the prediction explains alone.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Codes, Crosscoder, Rows
from trainer.errors import StoreError
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore

BLOCK = 4096
"""Rows encoded at a time."""
DENSE = 0.1
"""A feature that fires on more than this share of the rows counts as dense."""
DENSITY_EDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Tally:
    """Sums over held-out rows."""

    def __init__(self, crosscoder: Crosscoder, means: Rows) -> None:
        """`means` are the mean activations per source [width], the reference of the variance."""
        self.crosscoder, self.means = crosscoder, means
        self.rows = 0
        self.firings = torch.zeros(crosscoder.features, dtype=torch.int64)
        self.error = dict.fromkeys(crosscoder.targets, 0.0)
        self.spread = dict.fromkeys(crosscoder.targets, 0.0)
        self.share = dict.fromkeys(crosscoder.targets, 0.0)
        self.unpredicted = dict.fromkeys(crosscoder.predictions, 0.0)

    def add(self, rows: Rows, codes: Codes) -> None:
        """Adds a block of raw activations and its codes."""
        rebuilt, predicted = self.crosscoder.reconstruct(rows, codes), self.crosscoder.predicted(rows)
        self.rows += codes.rows
        self.firings += torch.bincount(codes.feature.cpu(), minlength=self.crosscoder.features)
        rows = self.crosscoder.with_differences(rows)
        for source in self.crosscoder.targets:
            x = rows[source].float().to(self.crosscoder.device)
            error = (x - rebuilt[source]).square().sum(dim=1)
            spread = (x - self.means[source].to(x.device)).square().sum(dim=1)
            self.error[source] += float(error.double().sum())
            self.spread[source] += float(spread.double().sum())
            self.share[source] += float((1 - error / spread.clamp_min(1e-12)).double().sum())
            if source in predicted:
                self.unpredicted[source] += float((x - predicted[source]).square().sum(dim=1).double().sum())

    def measures(self) -> list[dict[str, Any]]:
        """Rows of the results' evaluation table: source name or None, measure, value.

        Raises StoreError for a measure that is not a number.
        """
        table: list[dict[str, Any]] = []

        def record(measure: str, value: float, source: str | None = None) -> None:
            if not math.isfinite(value):
                raise StoreError(
                    f"{measure} of {source or 'the crosscoder'} is not a number on the held-out rows: they "
                    "are too large for float32, or the crosscoder is damaged. Check the sources' hookpoints and dtype."
                )
            table.append({"source": source, "measure": measure, "value": float(value)})

        for source in self.crosscoder.targets:
            record("variance_explained", 1 - self.error[source] / max(self.spread[source], 1e-12), source)
            record("variance_explained_per_row", self.share[source] / self.rows, source)
            if source in self.unpredicted:
                record("variance_predicted", 1 - self.unpredicted[source] / max(self.spread[source], 1e-12), source)
        density = self.firings.double() / self.rows
        record("rows", self.rows)
        record("l0", float(density.sum()))
        record("dead_share", float((self.firings == 0).double().mean()))
        record("dense_share", float((density > DENSE).double().mean()))
        for group in self.crosscoder.groups:
            group_density = density[group.first : group.stop]
            record(f"l0.{group.name}", float(group_density.sum()))
            record(f"alive_share.{group.name}", float((group_density > 0).double().mean()))
            record(f"features.{group.name}", group.features)
        for low, high in pairwise(DENSITY_EDGES):
            record(f"density_histogram.{low:g}", int(((density >= low) & (density < high)).sum()))
        return table


def evaluate(store: ActivationStore, crosscoder: Crosscoder, progress: Progress) -> list[dict[str, Any]]:
    """Rows of the results' evaluation table, on the held-out rows. Raises StoreError when there are none."""
    total = store.count("held_out")
    if not total:
        raise StoreError(
            f'{store.path} has no held-out rows to evaluate on. Mark a shard with "split": "held_out" in its manifest.'
        )
    tally = Tally(crosscoder, _means(store, crosscoder))
    with progress.task("evaluate", total=total) as task:
        for block in store.blocks("held_out", rows=BLOCK):
            tally.add(block.rows, crosscoder.encode(block.rows))
            task.advance(len(next(iter(block.rows.values()))))
    measures = tally.measures()
    for row in measures:
        if row["measure"] == "variance_explained" and row["value"] < 0:
            progress.notify(
                f"evaluate: reconstructions of {row['source']} are further from its activations than their mean "
                f"(variance explained {row['value']:.3g}), so its features mean nothing. Train longer or with a lower "
                "training.learning_rate; an imported crosscoder needs the activations and scales it was trained with."
            )
    return measures


def _means(store: ActivationStore, crosscoder: Crosscoder) -> Rows:
    """Mean of every target over the held-out rows, fp32 [width]."""
    sums: dict[str, Tensor] = {}
    for block in store.blocks("held_out", rows=BLOCK):
        rows = crosscoder.with_differences(block.rows)
        for source in crosscoder.targets:
            total = rows[source].sum(dim=0, dtype=torch.float64)
            sums[source] = sums[source] + total if source in sums else total
    return {source: (total / store.count("held_out")).float() for source, total in sums.items()}
