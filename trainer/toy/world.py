"""Toy worlds: concepts with known directions per source, and activations sampled from them."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from trainer.store.store import ActivationStore, Rows, Split, StoredSource, StoreWriter
from trainer.toy.firing import FiringModel

NOISE = 0.01
"""Standard deviation of the noise on every coordinate."""
MAP_DEVIATION = 0.5
"""Standard deviation of the entries of the map from the first source's directions to another's."""
OFFSET_DEVIATION = 0.1
"""Standard deviation of the map's offset, which all directions share."""
BLOCK = 2**14
"""Rows sampled at a time; fixed, because the random numbers depend on it."""
SHARD_BLOCKS = 8
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class WorldPlan:
    """Parameters of a random world."""

    concepts: int = 512
    widths: tuple[int, ...] = (128, 128)
    """Width of every source."""
    exclusive_share: float = 0.05
    """Share of the concepts that one source alone holds, summed over the sources."""
    pair_share: float = 0.0
    """Share of the concepts that exactly two of three or more sources hold, summed over the pairs."""
    private_noise: float = 0.0
    """Variance of dense noise that each source has alone, in half of its dimensions, over that of its concepts."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(f"source-{number + 1}" for number in range(len(self.widths)))


@dataclass(frozen=True)
class World:
    """Concepts and the distribution of their firings. Axes: C concepts, S sources, W width of a source."""

    vectors: Rows
    """By source, the direction of every concept [C, W]; zero where the source does not hold it."""
    firing: FiringModel
    seed: int
    noise: Rows = field(default_factory=dict)
    """By source, directions of dense noise that it has alone [N, W]; their coefficients are standard normal."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(self.vectors)

    def block(self, number: int) -> tuple[Rows, Tensor]:
        """Rows of a numbered block per source [BLOCK, W], always the same, and firings of each concept in it [C]."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        active = self.firing.draw(BLOCK, generator)
        offsets = torch.searchsorted(active.row, torch.arange(BLOCK))
        rows = {}
        for source, vectors in self.vectors.items():
            clean = torch.nn.functional.embedding_bag(
                active.concept, vectors, offsets, mode="sum", per_sample_weights=active.magnitude
            )
            rows[source] = clean.add_(torch.empty_like(clean).normal_(0.0, NOISE, generator=generator))
        for source, directions in self.noise.items():
            rows[source] += torch.randn(BLOCK, len(directions), generator=generator) @ directions
        return rows, torch.bincount(active.concept, minlength=self.firing.concepts)

    def write(
        self,
        path: Path,
        *,
        rows: int,
        held_out: int,
        dtype: str = "float16",
    ) -> tuple[ActivationStore, Tensor]:
        """Write training rows and then held-out rows.

        Returns the store, and the share of the sampled rows on which each concept fires [C].
        """
        sources = tuple(StoredSource(name, vectors.shape[1], dtype) for name, vectors in self.vectors.items())
        writer = StoreWriter(path, sources)
        fired, number = torch.zeros(self.firing.concepts, dtype=torch.int64), 0
        parts: list[tuple[Split, int]] = [("train", rows), ("held_out", held_out)]
        for split, wanted in parts:
            for sizes in _shards(wanted):
                shard: list[Rows] = []
                for size in sizes:
                    sampled, counts = self.block(number)
                    shard.append({name: x[:size].to(DTYPES[dtype]) for name, x in sampled.items()})
                    fired += counts
                    number += 1
                writer.add({name: torch.cat([part[name] for part in shard]) for name in self.sources}, {}, split)
        writer.finish(None, {"world_seed": self.seed})
        return ActivationStore.open(path), fired / max(number * BLOCK, 1)


def random_world(plan: WorldPlan, seed: int) -> World:
    """Random unit directions in the first source, and affine images of them with the same median norm in the others."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.nn.functional.normalize(torch.randn(plan.concepts, plan.widths[0], generator=generator), dim=1)
    images = [first] + [_image(first, width, generator) for width in plan.widths[1:]]
    holds = _holders(plan, generator)
    vectors = {name: image * holds[:, [at]] for at, (name, image) in enumerate(zip(plan.sources, images, strict=True))}
    world = World(vectors, FiringModel.random(plan.concepts, generator), seed)
    if not plan.private_noise:
        return world
    noise = {name: _noise(clean, plan.private_noise, generator) for name, clean in world.block(0)[0].items()}
    return replace(world, noise=noise)


def _noise(clean: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Directions of noise in half of the dimensions [W / 2, W] that adds a `share` of the variance of rows [R, W]."""
    width = clean.shape[1]
    basis = torch.linalg.qr(torch.randn(width, width // 2, generator=generator)).Q.T
    directions: Tensor = basis * (share * clean.var(dim=0).sum() / len(basis)).sqrt()
    return directions


def _image(first: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Another source's directions for the same concepts [C, width]: M c + b, scaled by one number."""
    matrix = torch.randn(width, first.shape[1], generator=generator) * MAP_DEVIATION
    image = first @ matrix.T + torch.randn(width, generator=generator) * OFFSET_DEVIATION
    lengths = [torch.linalg.vector_norm(vectors, dim=1).median() for vectors in (first, image)]
    image *= lengths[0] / lengths[1]
    return image


def _holders(plan: WorldPlan, generator: torch.Generator) -> Tensor:
    """Which source holds which concept, bool [C, S]; sampled independently of how often a concept fires."""
    count = len(plan.widths)
    pairs = list(combinations(range(count), 2)) if count > 2 else []
    subsets = [(source,) for source in range(count)] * (count > 1) + pairs
    holds = torch.ones(plan.concepts, count, dtype=torch.bool)
    order, taken = torch.randperm(plan.concepts, generator=generator), 0
    for subset in subsets:
        share = plan.exclusive_share / count if len(subset) == 1 else plan.pair_share / len(pairs)
        chosen = order[taken : taken + round(share * plan.concepts)]
        holds[chosen] = torch.tensor([source in subset for source in range(count)])
        taken += len(chosen)
    return holds


def _shards(rows: int) -> Iterator[list[int]]:
    """Sizes of the blocks of every shard; the last block may be shorter."""
    sizes = [min(BLOCK, rows - first) for first in range(0, rows, BLOCK)]
    yield from (sizes[first : first + SHARD_BLOCKS] for first in range(0, len(sizes), SHARD_BLOCKS))
