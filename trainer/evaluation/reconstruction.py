"""Stage 3: what the crosscoder is worth on rows that training never saw.

Two definitions of explained variance stand side by side, because the literature uses both: over all rows together,
and per row, averaged.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Codes, Crosscoder, Rows
from trainer.errors import StoreError
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore

BLOCK = 4096
"""Rows at a time."""
DENSE = 0.1
"""A feature that fires on more than this share of the rows counts as dense."""
DENSITY_EDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Tally:
    """Sums over held-out rows."""

    def __init__(self, crosscoder: Crosscoder, means: Rows) -> None:
        """`means` are the rows' means per source [width], about which variance is counted."""
        self.crosscoder, self.means = crosscoder, means
        self.rows = 0
        self.firings = torch.zeros(crosscoder.features, dtype=torch.int64)
        self.error = dict.fromkeys(crosscoder.targets, 0.0)
        self.spread = dict.fromkeys(crosscoder.targets, 0.0)
        self.share = dict.fromkeys(crosscoder.targets, 0.0)

    def add(self, rows: Rows, codes: Codes) -> None:
        """Count a block of raw activations and its codes in."""
        rebuilt = self.crosscoder.decode(codes)
        self.rows += codes.rows
        self.firings += torch.bincount(codes.feature.cpu(), minlength=self.crosscoder.features)
        rows = self.crosscoder.derived(rows)
        for source in self.crosscoder.targets:
            x = rows[source].float().to(self.crosscoder.device)
            error = (x - rebuilt[source]).square().sum(dim=1)
            spread = (x - self.means[source].to(x.device)).square().sum(dim=1)
            self.error[source] += float(error.double().sum())
            self.spread[source] += float(spread.double().sum())
            self.share[source] += float((1 - error / spread.clamp_min(1e-12)).double().sum())

    def measures(self) -> list[dict[str, Any]]:
        """Rows of the results' evaluation table: source name or None, measure, value."""
        out: list[dict[str, Any]] = []

        def say(measure: str, value: float, source: str | None = None) -> None:
            out.append({"source": source, "measure": measure, "value": float(value)})

        for source in self.crosscoder.targets:
            say("variance_explained", 1 - self.error[source] / max(self.spread[source], 1e-12), source)
            say("variance_explained_per_row", self.share[source] / self.rows, source)
        density = self.firings.double() / self.rows
        say("rows", self.rows)
        say("l0", float(density.sum()))
        say("dead_share", float((self.firings == 0).double().mean()))
        say("dense_share", float((density > DENSE).double().mean()))
        for group in self.crosscoder.groups:
            mine = density[group.first : group.stop]
            say(f"l0.{group.name}", float(mine.sum()))
            say(f"alive_share.{group.name}", float((mine > 0).double().mean()))
            say(f"features.{group.name}", group.features)
        for low, high in pairwise(DENSITY_EDGES):
            say(f"density_histogram.{low:g}", int(((density >= low) & (density < high)).sum()))
        return out


def evaluate(store: ActivationStore, crosscoder: Crosscoder, progress: Progress) -> list[dict[str, Any]]:
    """Measures on the held-out rows of a store. Raises StoreError when it has none."""
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
    return tally.measures()


def _means(store: ActivationStore, crosscoder: Crosscoder) -> Rows:
    """Mean of every target over the held-out rows [width], fp32."""
    sums: dict[str, Tensor] = {}
    for block in store.blocks("held_out", rows=BLOCK):
        rows = crosscoder.derived(block.rows)
        for source in crosscoder.targets:
            total = rows[source].sum(dim=0, dtype=torch.float64)
            sums[source] = sums[source] + total if source in sums else total
    return {source: (total / store.count("held_out")).float() for source, total in sums.items()}
