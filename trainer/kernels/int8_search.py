"""Screening: entries of a dense product above a bound, found with a product in eight bits and then computed exactly.

Few entries matter, so the dense product only has to say which ones may. Both factors are rounded up or down by
chance, without bias and independently in every coordinate. The error of an entry is then a sum of independent terms,
each within one step of its factor, and exceeds `MARGIN` times the root of the sum of their squares with a chance of
at most `MISSED` (Hoeffding 1963, theorem 2). What may be above the bound with such an error is computed in fp32, and
what really is above it is kept.

Axes: R rows, F features, W width of a source.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from math import log, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.kernels import cpu
from trainer.kernels.cpu import as_array, loop_named, order_by, share_out
from trainer.kernels.sparse import dense_above

MISSED = 1e-12
"""Chance that an entry just above the bound is left out; the farther above it is, the smaller it gets."""
MARGIN = 1.02 * sqrt(log(1 / MISSED) / 2)
"""Two parts in a hundred are for the rounding of the comparison itself, which is in fp32."""
WORTH = 2**20
"""Weights from which screening takes less time than the product in bfloat16."""
MOST = 1 / 48
"""Share of entries to be kept up to which it does; about twice as many are hits."""
TOO_MANY = 16
"""Where one entry in so many is a hit, computing them one by one takes longer than all at once."""
SAMPLE = 256
"""Vectors by which coordinates are balanced."""
SHIFTS = 8191
"""Vectors begin at so many places of one row of random numbers."""
DEEPEST = 2**31 // (127 * 255) - 4
"""Coordinates of which the largest possible products fit a sum in 32 bits."""
CACHED = 2**19
"""Bytes of rows that stay in a core's cache while the features pass by."""
UNSIGNED = -0x7F7F7F80
"""0x80 in every byte of a word: turns signed bytes into unsigned ones that are 128 larger."""
HUGE = float(np.finfo(np.float32).max)


class Shape(NamedTuple):
    """What a processor multiplies at a time."""

    lanes: int
    """32-bit numbers in a register."""
    rows: int
    """Rows of a tile; with two vectors of columns each they fill three quarters of the registers."""

    @property
    def columns(self) -> int:
        """Columns of a tile."""
        return 2 * self.lanes


@cache
def shape() -> Shape | None:
    """How this processor's products are screened; None where they are not, or bfloat16 is as fast as bytes (AMX)."""
    return None if "amx-bf16" in _abilities() else possible()


def possible() -> Shape | None:
    """How this processor multiplies bytes; None where it does not."""
    has = _abilities()
    if {"avx512vnni", "avx512vl"} <= has:
        return Shape(16, 12)
    return Shape(8, 6) if {"avxvnni", "fma"} <= has else None


def _abilities() -> set[str]:
    """What the processor has that numba compiles for, in LLVM's words."""
    if not cpu.AVAILABLE:
        return set()
    numba = import_module("numba").config
    if numba.CPU_NAME or numba.CPU_FEATURES:  # somebody wants code for another processor
        return set()
    try:
        features = import_module("llvmlite.binding").get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this kind of processor
        return set()
    return {name for name, there in features.items() if there}


def usable(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether a product of these parts can be screened, and is worth it: fp32 on a CPU that multiplies bytes fast.

    It does not depend on how many rows there are, so that they are encoded alike in small blocks and in large ones.
    """
    width, size = sum(part.shape[1] for part in weights), sum(part.numel() for part in weights)
    return width <= DEEPEST and size >= WORTH and shape() is not None and cpu.usable(*rows, *weights)


class Factor(NamedTuple):
    """Vectors in eight bits."""

    packed: Tensor
    """int32 [blocks, depth, block]: four coordinates at a time of every vector of a block."""
    step: Tensor
    """What one level stands for [vectors]."""
    squares: Tensor
    """Sum of squared levels, all of them rounded away from zero [vectors]."""
    total: Tensor
    """Sum of levels [vectors]."""


class Screen:
    """Rows and weights ready to be searched for entries above one bound after another."""

    def __init__(
        self,
        rows: Sequence[Tensor],
        weights: Sequence[Tensor],
        bias: Tensor,
        *,
        factor: float = 1.0,
        instead_of: "Screen | None" = None,
    ) -> None:
        """Parts [R, W] and [F, W], bias [F]; an entry is the sum of factor * rows . weights over the parts, plus bias.

        The memory of an earlier screen is written again: fresh memory takes as long as the packing.
        """
        found = shape()
        assert found is not None, "ask `usable` first"
        self._shape, self._exact, self._bias, self._factor = found, (rows, weights), bias, factor
        balance, old = _balance(rows, weights), None if instead_of is None else instead_of.weights.packed
        self.rows: Factor = _packed(rows, balance, found.rows)
        self.weights: Factor = _packed(weights, 1 / balance, found.columns, flip=UNSIGNED, old=old)

    def above(self, bound: Tensor) -> tuple[Tensor, Tensor]:
        """Entries above a bound [F] >= 0: flat indices, row * F + feature, in order, int64 [N], and values fp32 [N]."""
        found = self._computed(self._hits(bound), bound) if bool(bound.any()) else None
        if found is None:
            inputs, weight = (torch.cat(list(parts), dim=1) for parts in self._exact)
            return dense_above(inputs * self._factor, weight, self._bias, bound)
        flat, value = found
        order, _ = order_by(torch.div(flat, len(bound), rounding_mode="floor"), len(self.rows.step))
        return flat[order], value[order]

    def _hits(self, bound: Tensor) -> Tensor:
        """Bits of the columns of every panel that may be above their bound, int32 [panels, R]."""
        left, right = self.rows.packed, self.weights.packed
        terms = self._terms(bound)
        hits = torch.empty(len(right), len(left) * self._shape.rows, dtype=torch.int32)
        search, together = _search(self._shape), max(1, CACHED // (4 * left[0].numel()))
        arrays = [as_array(x) for x in (left, right, *terms, hits)]
        share_out(lambda first, stop: search(first, stop, *arrays, together), len(hits), hits.numel() * left.shape[1])
        return hits[:, : len(self.rows.step)]

    def _terms(self, bound: Tensor) -> tuple[Tensor, Tensor]:
        """What sums of levels must exceed, by row [blocks, 2, block] and column [panels, 2, panel] (see `vnni`).

        The margin is the root of what a row and a column add to it; sqrt(a + b) <= (a + b) / 2m + m / 2 for every m
        takes the two apart, here with the root in the middle.
        """
        left, right = self.rows, self.weights
        middle = float((left.squares.mean() + right.squares.mean()).sqrt())
        start = 128 * left.total - MARGIN * (left.squares / (2 * middle) + middle / 2)
        least = ((bound - self._bias) / (self._factor * right.step)).clamp(-HUGE, HUGE)
        less = MARGIN * right.squares / (2 * middle)
        return (
            _side_by_side(self._shape.rows, (start, HUGE), (1 / left.step, 0.0)),
            _side_by_side(self._shape.columns, (least, HUGE), (less, 0.0)),
        )

    def _computed(self, hits: Tensor, bound: Tensor) -> tuple[Tensor, Tensor] | None:
        """The hits that are above the bound, in order of features; None where hits are too many."""
        columns, words = self._shape.columns, as_array(hits).view(np.uint32)
        parts = [(as_array(rows), as_array(weights)) for rows, weights in zip(*self._exact, strict=True)]
        found: dict[int, tuple[Tensor, Tensor]] = {}
        crowded: list[int] = []

        def part(first: int, stop: int) -> None:
            mine = slice(first * columns, min(stop * columns, len(bound)))
            begin = np.zeros((stop - first) * columns + 1, np.int64)
            row = np.empty((stop - first) * columns * hits.shape[1] // TOO_MANY + columns, np.int64)
            count = loop_named("list_hits")(first, stop, words, columns, begin, row)
            if count > len(row):
                crowded.append(first)
                return
            value, flat = torch.zeros(count), torch.empty(count, dtype=torch.int64)
            for x, w in parts:  # source by source: the rows of one stay in the cache
                products = (begin, row, x, w[mine], np.float32(self._factor), as_array(value))
                loop_named("inner_products")(0, len(w[mine]), *products)
            terms = as_array(self._bias[mine]), as_array(bound[mine]), len(bound), as_array(flat)
            kept = loop_named("keep_above")(begin, row, as_array(value), *terms)
            found[first] = flat[:kept] + mine.start, value[:kept]

        share_out(part, len(hits), hits.numel() * columns)
        if crowded:
            return None
        flats, values = zip(*(found[first] for first in sorted(found)), strict=True)
        return torch.cat(flats), torch.cat(values)


def _balance(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """What coordinates of rows are multiplied with and those of weights divided by, to make both alike [sum of W]."""

    def squares(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part[:: max(1, len(part) // SAMPLE)].square().mean(dim=0) for part in parts])

    return ((squares(weights) + 1e-12) / (squares(rows) + 1e-12)).pow(0.25)


def _packed(
    parts: Sequence[Tensor], balance: Tensor, block: int, *, flip: int = 0, old: Tensor | None = None
) -> Factor:
    vectors, width = len(parts[0]), len(balance)
    size = (-(-vectors // block), -(-width // 4), block)
    packed = old if old is not None and old.shape == size else _aligned(size)
    terms = torch.empty(3, vectors)
    dither, loop = _dither(flip, width), loop_named("pack")
    arrays = tuple(map(as_array, parts)), as_array(balance), dither, np.int32(flip), as_array(packed), as_array(terms)
    share_out(lambda first, stop: loop(first, stop, *arrays), size[0], vectors * width)
    return Factor(packed, *terms)


def _aligned(size: tuple[int, int, int]) -> Tensor:
    """Zeros that begin where a register may be loaded from."""
    count = size[0] * size[1] * size[2]
    room = torch.zeros(count + 16, dtype=torch.int32)
    return room[-room.data_ptr() % 64 // 4 :][:count].view(size)


@cache
def _dither(flip: int, width: int) -> np.ndarray:
    """Numbers from 0 to 1 [width + SHIFTS], for weights others than for rows."""
    return np.random.default_rng([abs(flip), width]).random(width + SHIFTS, dtype=np.float32)


@cache
def _search(shape: Shape) -> Any:
    return import_module("trainer.kernels.vnni").searching(shape.lanes, shape.rows)


def _side_by_side(block: int, *terms: tuple[Tensor, float]) -> Tensor:
    """Terms [n], each with what follows where there are no more of it, as [blocks, terms, block]."""
    missing = -len(terms[0][0]) % block
    rows = [torch.cat([values, values.new_full((missing,), beyond)]).view(-1, block) for values, beyond in terms]
    return torch.stack(rows, dim=1)
