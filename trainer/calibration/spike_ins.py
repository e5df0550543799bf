"""Adds spike-ins to real activations: concepts of known direction, frequency and amplitude.

An *exclusive* spike-in is added to one source, a *shared* one to all, along an independent random direction in each; on
a row where it fires, every source gets the same magnitude. Axes: R rows, C spike-ins, W width of a source.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.calibration.rng import seeded_generator
from trainer.calibration.samples import write_sample
from trainer.crosscoder.normalisation import Normaliser
from trainer.recipe.measuring import CalibrationRecipe
from trainer.store.store import ActivationStore, Rows

BLOCK = 4096
"""Rows per random generator of firings, so that any range of rows can be drawn again."""


@dataclass(frozen=True)
class SpikeIn:
    """A concept that is added to activations."""

    source: str | None
    """The only source that has it; None if all have it."""
    amplitude: float
    """Mean length of the added vector where it fires, in units of the source's typical distance from its mean."""
    frequency: float
    """Share of rows on which it fires."""


@dataclass(frozen=True)
class SpikeInSet:
    """All spike-ins of a calibration, with their directions."""

    concepts: tuple[SpikeIn, ...]
    directions: Mapping[str, Tensor]
    """By source, unit directions [C, W]; zero where the source does not have the concept."""
    seed: int

    @classmethod
    def from_recipe(cls, recipe: CalibrationRecipe, widths: Mapping[str, int]) -> "SpikeInSet":
        """The recipe's grid: every amplitude at every frequency, exclusive to each source and shared."""
        cells = itertools.product([*widths, None], recipe.amplitudes, recipe.frequencies, range(recipe.per_cell))
        concepts = tuple(SpikeIn(source, amplitude, frequency) for source, amplitude, frequency, _ in cells)
        generator = seeded_generator("spike-ins", recipe.seed)
        directions = {}
        for name, width in widths.items():
            has = torch.tensor([concept.source in (None, name) for concept in concepts])
            direction = torch.randn(len(concepts), width, generator=generator)
            directions[name] = torch.nn.functional.normalize(direction, dim=1) * has[:, None]
        return cls(concepts, directions, recipe.seed)

    def magnitudes(self, first: int, count: int) -> Tensor:
        """Magnitudes of all spike-ins on rows `first` to `first + count` of the sample [count, C]; mostly zero.

        Where a spike-in fires, its magnitude is uniform in 0.5 to 1.5 times the amplitude.
        """
        low, high = first // BLOCK, -(-(first + count) // BLOCK)
        blocks = [self._block(number) for number in range(low, high)]
        return torch.cat(blocks)[first - low * BLOCK :][:count]

    def _block(self, number: int) -> Tensor:
        generator = seeded_generator("spike-ins", self.seed, "rows", number)
        frequency = torch.tensor([concept.frequency for concept in self.concepts])
        amplitude = torch.tensor([concept.amplitude for concept in self.concepts])
        fires = torch.rand(BLOCK, len(self.concepts), generator=generator) < frequency
        return fires * (0.5 + torch.rand(BLOCK, len(self.concepts), generator=generator)) * amplitude


def spiked_store(
    store: ActivationStore,
    path: Path,
    names: Sequence[str],
    normaliser: Mapping[str, Normaliser],
    spike_ins: SpikeInSet,
    *,
    rows: int,
) -> ActivationStore:
    """Store of the sources `names` with the spike-ins added."""
    known = {source.name: source for source in store.sources}
    # In normalised space the typical distance from the mean is √W.
    added = {name: spike_ins.directions[name] * math.sqrt(known[name].width) / normaliser[name].scale for name in names}

    def transform(raw: Rows, first: int) -> Rows:
        magnitude = spike_ins.magnitudes(first, len(raw[names[0]]))
        return {name: raw[name].float() + magnitude @ added[name] for name in names}

    sources = tuple(replace(known[name], dtype="bfloat16") for name in names)
    return write_sample(store, path, sources, rows=rows, transform=transform)
