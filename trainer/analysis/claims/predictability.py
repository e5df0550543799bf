"""Measures how much of each source the others tell linearly: the first thing to read of a comparison.

Of every source, the share of the variance that a cross-fitted affine map from other sources explains: from all others
together and from each alone; overall, by principal directions of the source, by corpus part and by language. A part's
variance is about its own mean, so that a map is not credited for telling one language from another. Axes: R rows,
W width of the source, K groups of documents, E cells (the whole, then bands, then parts).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.claims.evidence import TAIL, draws
from trainer.analysis.claims.linear_map import fit_map
from trainer.analysis.per_feature.firings import RowMetadata
from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.row_moments import RowMoments

BAND_ENDS = (1, 10, 50, 200)
"""Last principal direction of each band, by variance; the last band holds the others."""
MIN_GROUPS = 10
"""Groups of documents that a part needs; of fewer, an interval says nothing."""
MAPPED_ROWS, MOST_ROWS, LEAST_ROWS = 2**17, 2**15, 2**12
"""Rows to which maps are applied, over all maps; most and least rows for one map."""
BLOCK = 8192
"""Rows at a time."""


class Partition(NamedTuple):
    """A partition of a sample's rows."""

    kind: str
    """`corpus` or `language`."""
    part: np.ndarray
    """Part of each row, index into `names` [R]."""
    names: tuple[str, ...]


def predictability(
    sample: RowSample, moments: RowMoments, sources: Sequence[str], partitions: Sequence[Partition] = ()
) -> Iterator[dict[str, Any]]:
    """Yield rows of the table `predictability`, with the source's name as `source`; deterministic."""
    pairs = [(source, given) for source in sources for given in _given(source, sources)]
    count = min(max(MAPPED_ROWS // max(len(pairs), 1), LEAST_ROWS), MOST_ROWS, sample.size)
    rows = torch.from_numpy(np.arange(count) * sample.size // max(count, 1))
    for source, of_source in itertools.groupby(pairs, key=lambda pair: pair[0]):
        target = _Target.of(source, sample, rows, moments, partitions)
        for _, given in of_source:
            yield from target.told_by(given)


def sample_partitions(metadata: RowMetadata, sample: RowSample) -> list[Partition]:
    """The partitions of a store's sequences, as those of the sample's rows; none for a store without texts."""
    order = metadata.row_order
    if order is None:
        return []
    stored = np.flatnonzero(sample.index >= 0)
    position = stored if order.position_of_row is None else order.position_of_row[stored]
    sequence = np.empty(sample.size, np.int64)
    sequence[sample.index[stored]] = order.sequence[position]
    return [Partition(one.kind, one.part[sequence], one.names) for one in metadata.partitions]


def _given(source: str, sources: Sequence[str]) -> list[tuple[str, ...]]:
    """What a source is predicted from: all others, and each of them."""
    others = tuple(name for name in sources if name != source)
    return [] if not others else list(dict.fromkeys([others, *((name,) for name in others)]))


class _Target(NamedTuple):
    """A source that is predicted on some rows."""

    name: str
    sample: RowSample
    rows: Tensor
    """Rows of the sample [R]."""
    moments: RowMoments
    partitions: Sequence[Partition]
    axes: Tensor
    """Principal directions as columns, by falling variance, fp32 [W, W]."""
    total: np.ndarray
    """Squared distance from the mean, by group of documents and cell [K, E]."""

    @classmethod
    def of(
        cls, name: str, sample: RowSample, rows: Tensor, moments: RowMoments, partitions: Sequence[Partition]
    ) -> "_Target":
        axes = torch.linalg.eigh(moments.joint([name], [name], None).products)[1].flip(1).float()
        parts = [partition._replace(part=partition.part[rows.numpy()]) for partition in partitions]
        target = cls(name, sample, rows, moments, parts, axes, np.zeros(0))
        x = sample.rows[name][rows].float()
        mean = x.mean(dim=0)
        whole = target._bands(x - mean)
        distances = [_distances(x, partition) for partition in parts]
        return target._replace(total=target._by_cell(whole, distances))

    def told_by(self, given: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Rows of the table for one set of given sources; cells without variance or with few groups are left out."""
        groups, cells = (self.total > 0).sum(axis=0), list(self._cells())
        kept = np.flatnonzero(groups >= np.where(np.arange(len(cells)) == 0, 1, MIN_GROUPS))
        left, total = self._left(given)[:, kept], self.total[:, kept]
        drawn = draws(self.total[:, 0] > 0)
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw may have no row of a part
            low, high = np.nanquantile(1 - (drawn @ left) / (drawn @ total), [TAIL, 1 - TAIL], axis=0)
        r2 = 1 - left.sum(axis=0) / total.sum(axis=0)
        for place, cell in enumerate(kept):
            where = cells[cell]
            yield {
                "source": self.name,
                "given": "+".join(given),
                **where,
                "share": float(total[:, place].sum() / self.total[:, 0].sum()) if where["band"] else None,
                "groups": int(groups[cell]),
                "r2": float(r2[place]),
                "low": float(low[place]),
                "high": float(high[place]),
            }

    def _left(self, given: tuple[str, ...]) -> np.ndarray:
        """Squared error of the prediction, by group of documents and cell [K, E]."""
        linear_map = fit_map(self.moments, given, [self.name])
        device, bands = linear_map.covariance.device, []
        fold = torch.from_numpy(self.sample.fold)[self.rows]
        for some in torch.arange(len(self.rows)).split(BLOCK):
            x = {name: self.sample.rows[name][self.rows[some]].to(device).float() for name in (*given, self.name)}
            bands.append(self._bands(x[self.name] - linear_map.predict(x, fold[some].to(device))))
        left = np.concatenate(bands)
        return self._by_cell(left, [left.sum(axis=1)] * len(self.partitions))

    def _bands(self, x: Tensor) -> np.ndarray:
        """Squared length of each row in every band [R, bands]."""
        energy = torch.cat([(part.to(self.axes.device) @ self.axes).square().cpu() for part in x.split(BLOCK)])
        edges = [0, *(end for end in BAND_ENDS if end < energy.shape[1]), energy.shape[1]]
        return np.stack([energy[:, low:high].sum(dim=1).numpy() for low, high in itertools.pairwise(edges)], axis=1)

    def _by_cell(self, bands: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Sums by group of documents and cell [K, E], of energies by band [R, bands] and for every partition [R]."""
        group, count = self.sample.cluster[self.rows.numpy()], self.sample.clusters
        columns = [bands.sum(axis=1), *bands.T]
        for partition, energy in zip(self.partitions, rows, strict=True):
            columns += [energy * (partition.part == number) for number in range(len(partition.names))]
        return np.stack([np.bincount(group, weights=column, minlength=count) for column in columns], axis=1)

    def _cells(self) -> Iterator[dict[str, str | None]]:
        """Corpus part, language and band of every cell."""
        everything: dict[str, str | None] = {"corpus": None, "language": None, "band": None}
        yield everything
        for band in _band_names(len(self.axes)):
            yield everything | {"band": band}
        for partition in self.partitions:
            for name in partition.names:
                yield everything | {partition.kind: name}


def _band_names(width: int) -> list[str]:
    """Principal directions of every band, from 1, such as `2-10`."""
    edges = [0, *(end for end in BAND_ENDS if end < width), width]
    return [f"{low + 1}-{high}" if high > low + 1 else f"{high}" for low, high in itertools.pairwise(edges)]


def _distances(x: Tensor, partition: Partition) -> np.ndarray:
    """Squared distance of each row from the mean of its part [R]."""
    part = torch.from_numpy(partition.part).long()
    total = torch.zeros(len(partition.names), x.shape[1]).index_add_(0, part, x)
    mean = total / torch.bincount(part, minlength=len(partition.names)).clamp_min(1)[:, None]
    found: np.ndarray = (x - mean[part]).square().sum(dim=1).numpy()
    return found
