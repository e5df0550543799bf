"""Asks whether other layers of the other models tell where a feature fires.

Two layers that are compared need not be at the same depth of what their models do: what one has at its layer another
may have earlier or later. So each claim is also held against probes of the other models' residual streams at a quarter,
a half, three quarters and all of their depth. Axes: C claims, L layers of all models, K groups of documents.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainer.analysis.claims.evidence import ClaimedFeatures, Estimate, draws, firings_by_group, ratio_estimate
from trainer.analysis.claims.probes import Probes, probe_features
from trainer.analysis.rows.sample import RowSample
from trainer.crosscoder.row_moments import RowMoments
from trainer.models.source import Source
from trainer.run.progress import Progress

ReadRows = Callable[[Source, Sequence[int], np.ndarray, np.ndarray], list[Tensor]]
"""Gives the residual stream of a model after some layers, each [R, W], at rows given by sequence and byte end [R]."""
DEPTHS = (0.25, 0.5, 0.75, 1.0)
"""Where a recipe that says nothing looks."""
ROWS = 65_536
"""Rows of the sample that are read at other layers."""
BLOCK = 16384
"""Rows whose moments are added at a time."""


@dataclass(frozen=True)
class OtherLayers:
    """Probe ratios of claims, with a layer of another model in the place of the one that was compared."""

    source: list[str]
    """Whose layer it is [L]."""
    layer: list[int]
    """[L]."""
    ratio: list[Estimate]
    """By layer, of every claim [C]; NaN where the owner is of that model, or nothing could be measured."""

    def largest(self, claims: int) -> Estimate:
        """Of every claim the estimate at the layer that tells most [C]; NaN if none was looked at."""
        unknown = np.full((1, claims), np.nan)
        value, low, high = (
            np.concatenate([unknown, *(getattr(one, part)[None] for one in self.ratio)])
            for part in ("value", "low", "high")
        )
        best = np.where(np.isnan(value), -np.inf, value).argmax(axis=0)[None]
        return Estimate(*(np.take_along_axis(part, best, axis=0)[0] for part in (value, low, high)))

    def columns(self, claims: np.ndarray, sources: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of the table `other_layer`; `claims` are features [C], `sources` those of the results."""
        parts = [
            (np.flatnonzero(~np.isnan(one.value)), sources.index(source), layer, one)
            for source, layer, one in zip(self.source, self.layer, self.ratio, strict=True)
        ]
        known = [len(index) for index, *_ in parts]
        joined = {
            "feature": np.concatenate([np.zeros(0, np.int64), *(claims[index] for index, *_ in parts)]),
            "source": np.repeat([source for _, source, *_ in parts], known),
            "layer": np.repeat([layer for _, _, layer, _ in parts], known),
        }
        for name, part in (("probe_ratio", "value"), ("probe_low", "low"), ("probe_high", "high")):
            values = [getattr(one, part)[index] for index, _, _, one in parts]
            joined[name] = np.concatenate([np.zeros(0), *values])
        order = np.lexsort((joined["layer"], joined["source"], joined["feature"]))
        return {name: column[order] for name, column in joined.items()}


@dataclass(frozen=True)
class LayerReader:
    """Reads the models of a run at other layers and asks them about claims."""

    depths: Sequence[float]
    """Which layers are looked at, as shares of a model's."""
    models: Sequence[Source]
    """Whole models; of none, nothing is looked at."""
    read: ReadRows
    progress: Progress

    def measure(self, sample: RowSample, claimed: ClaimedFeatures) -> OtherLayers:
        """Probe ratios of all claims at all other layers of models that the owner is not; takes the sample's rows."""
        found = OtherLayers([], [], [])
        asked = [one for one in self.models if self._foreign(one, claimed).any() and self.layers(one)]
        if sample.byte_end is None or (sample.sequence < 0).any() or not asked:
            return found
        part = sample.take_first(ROWS)
        firings = [rows[rows < part.size] for rows in claimed.firings]
        own = probe_features(part, firings, claimed.sources, _moments(part.rows, part.fold))
        part.rows.clear()  # from here on those of other layers
        fired, drawn = firings_by_group(part, firings), draws(part.judged_clusters)
        inside = np.where(claimed.holds, own.hits.sum(axis=1).T, -1).argmax(axis=1)
        with self.progress.task("Looking at other layers", total=len(asked), unit="models"):
            for source in asked:
                foreign = self._foreign(source, claimed)
                for layer, probes in self._probes(source, part, firings):
                    estimate = ratio_estimate(probes.hits[0], _taken(own, inside), own.enough, fired, drawn)
                    found.source.append(source.name)
                    found.layer.append(layer)
                    found.ratio.append(
                        Estimate(*(np.where(foreign, values, np.nan) for values in vars(estimate).values()))
                    )
                self.progress.advance(1)
        return found

    def layers(self, source: Source) -> list[int]:
        """Layers of a model that are looked at, without the one that is compared."""
        layers = {max(0, round(depth * source.layers) - 1) for depth in self.depths}
        return sorted(layers - ({source.recipe.layer} if source.recipe.hookpoint == "resid_post" else set()))

    def _foreign(self, source: Source, claimed: ClaimedFeatures) -> np.ndarray:
        """Claims of whose owners none is of this source's model, bool [C]."""
        model_of = {one.name: (one.recipe.model, one.recipe.revision, one.recipe.adapter) for one in self.models}
        same = [model_of.get(name) == model_of[source.name] for name in claimed.sources]
        foreign: np.ndarray = ~(claimed.holds & np.array(same)).any(axis=1)
        return foreign

    def _probes(self, source: Source, part: RowSample, firings: Sequence[np.ndarray]) -> Iterator[tuple[int, Probes]]:
        """Probes of each other layer of a source."""
        assert part.byte_end is not None, "`measure` asks only where there are texts"
        layers = self.layers(source)
        activations = self.read(source, layers, part.sequence, part.byte_end)
        for layer in layers:
            rows = {source.name: activations.pop(0)}
            yield layer, probe_features(replace(part, rows=rows), firings, [source.name], _moments(rows, part.fold))


def _taken(probes: Probes, inside: np.ndarray) -> np.ndarray:
    """Hits of the best probe inside each claim's owner, by group of documents [K, C]."""
    hits: np.ndarray = probes.hits[inside, :, np.arange(len(inside))].T
    return hits


def _moments(rows: Mapping[str, Tensor], fold: np.ndarray) -> RowMoments:
    moments = RowMoments({name: x.shape[1] for name, x in rows.items()})
    for first in range(0, len(fold), BLOCK):
        some = slice(first, first + BLOCK)
        moments.add({name: x[some].float() for name, x in rows.items()}, torch.from_numpy(fold[some]))
    return moments
