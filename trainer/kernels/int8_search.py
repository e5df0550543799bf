"""Finds the entries of a dense product above a bound: candidates in int8, their values in fp32.

Few entries exceed the bound, so the dense product only has to name candidates. Rows and weights are quantised to int8
with stochastic rounding, which is unbiased and independent in every coordinate, and off by less than one step. The
error of an entry, in units of both vectors' steps, is then a sum of independent terms and exceeds `MARGIN` times the
root of the sum of both vectors' squared levels with probability at most `MISS_PROBABILITY` (Hoeffding 1963, theorem 2).
An entry that exceeds the bound less this margin is a candidate; candidates are computed in fp32, and those above the
bound are kept.

Axes: R rows, F features, W width of a source.
"""

import logging
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from math import log, sqrt
from textwrap import shorten
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.kernels import cpu
from trainer.kernels.cpu import Loop, as_array, loop_named, run_in_threads, stable_order
from trainer.kernels.sparse import dense_above

MISS_PROBABILITY = 1e-12
"""Probability of missing an entry just above the bound; it falls with the entry's distance from the bound."""
MARGIN = 1.02 * sqrt(log(1 / MISS_PROBABILITY) / 2)
"""Two per cent of it cover the rounding of the comparison itself, which is in fp32."""
MIN_WEIGHTS = 2**20
"""Weights from which int8 search takes less time than the product in bfloat16."""
MAX_KEPT_SHARE = 1 / 48
"""Share of entries above the bound up to which it does; about twice as many are candidates."""
MIN_ENTRIES_PER_CANDIDATE = 16
"""With more than one candidate in this many entries, the whole fp32 product takes less time than the candidates'."""
BALANCE_SAMPLE = 256
"""Vectors from which the balance of coordinates is estimated."""
DITHER_OFFSETS = 8191
"""Vectors take their random numbers from one shared array, beginning at one of this many offsets."""
MAX_WIDTH = 2**31 // (127 * 255) - 4
"""Coordinates of which the largest possible products fit a 32-bit sum."""
CACHE_BYTES = 2**19
"""Bytes of rows that stay in a core's cache while all panels of features are read."""
SIGN_FLIP = -0x7F7F7F80
"""0x80 in every byte of a word: XOR with it adds 128 to signed bytes, which makes them unsigned."""
FLOAT32_MAX = float(np.finfo(np.float32).max)

_compile_lock = Lock()
_log = logging.getLogger(__name__)


class TileShape(NamedTuple):
    """Size of the part of the product that the kernel computes at a time."""

    lanes: int
    """32-bit numbers in a register."""
    rows: int
    """Rows of a tile; with two vectors of columns each they fill three quarters of the registers."""

    @property
    def columns(self) -> int:
        """Columns of a tile."""
        return 2 * self.lanes


def tile_shape() -> TileShape | None:
    """Tile that int8 search uses in this process, its kernel compiled and checked; None where torch is used instead."""
    tile = preferred_tile()
    return tile if tile is not None and search_kernel(tile) is not None else None


@cache
def preferred_tile() -> TileShape | None:
    """Tile for this processor if int8 is its fastest product; None without VNNI, or with AMX, where bf16 is as fast."""
    return None if "amx-bf16" in _processor_features() else processor_tile()


def processor_tile() -> TileShape | None:
    """Tile for the widest registers in which this processor multiplies bytes (VNNI); None where it has no VNNI."""
    features = _processor_features()
    if {"avx512vnni", "avx512vl"} <= features:
        return TileShape(16, 12)
    return TileShape(8, 6) if {"avxvnni", "fma"} <= features else None


def _processor_features() -> set[str]:
    """LLVM's names of the instruction sets that numba compiles for; empty where numba does not work."""
    if not cpu.available():
        return set()
    try:
        config = import_module("numba").config
        if config.CPU_NAME or config.CPU_FEATURES:  # set by the user: code for another processor
            return set()
        features = import_module("llvmlite.binding").get_host_cpu_features()
    except (ImportError, OSError, RuntimeError):  # a broken installation; a processor that LLVM does not know
        return set()
    return {name for name, present in features.items() if present}


def search_kernel(tile: TileShape) -> Loop | None:
    """Compiled and checked kernel for a tile (see `vnni`); None, after one warning, where it does not work.

    Decided once for every process: a kernel that does not work is not tried again.
    """
    with _compile_lock:  # `cache` alone lets several threads compile, and warn
        return _checked_kernel(tile)


@cache
def _checked_kernel(tile: TileShape) -> Loop | None:
    try:
        kernel: Loop = import_module("trainer.kernels.vnni").search_kernel(tile.lanes, tile.rows)
        if not _passes_self_check(kernel, tile):
            raise ArithmeticError("wrong sums in the self-check")
    except Exception as error:  # noqa: BLE001 - whatever numba, llvmlite or LLVM may raise; torch does the same
        _log.warning(
            "Int8 search is off: its kernel does not work with %s and %s (%s: %s). Torch computes the encoder product "
            "instead, which is slower.",
            _installed("numba"),
            _installed("llvmlite"),
            type(error).__name__,
            shorten(str(error), 200),
        )
        return None
    return kernel


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _passes_self_check(kernel: Loop, tile: TileShape) -> bool:
    """Whether the kernel computes every sum of one tile of random bytes exactly.

    The columns are repeated in two panels for every row of the tile. Bounds are that row's sums in one panel and one
    less in the other: if the row exceeds none of the former and all of the latter, its sums are exact.
    """
    depth, rng = 3, np.random.default_rng(0)
    left = rng.integers(-128, 128, (depth, tile.rows, 4)).astype(np.int8)
    right = rng.integers(0, 256, (depth, tile.columns, 4)).astype(np.uint8)
    sums = np.einsum("krb,kcb->rc", left.astype(np.int64), right.astype(np.int64))
    bounds = np.concatenate([sums, sums - 1])
    rows, columns = _aligned((1, *left.shape[:2])), _aligned((len(bounds), *right.shape[:2]))
    as_array(rows)[:] = left.view(np.int32)[..., 0]
    as_array(columns)[:] = right.view(np.int32)[..., 0]
    # 3 + (bound + 2) / 2 * 2 - 5 is the bound again, and every term of it is used.
    row_terms = np.repeat(np.array([3, 2], np.float32), tile.rows).reshape(1, 2, tile.rows)
    column_terms = np.stack([(bounds + 2) / 2, np.full(bounds.shape, 5.0)], axis=1).astype(np.float32)
    candidates = np.zeros((len(bounds), tile.rows), np.int32)
    kernel(0, len(bounds), as_array(rows), as_array(columns), row_terms, column_terms, candidates, 1)
    above = candidates[..., None] >> np.arange(tile.columns) & 1
    return np.array_equal(above == 1, sums > bounds[:, None])


def usable(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether int8 search can compute this product faster than torch: large, fp32, on a CPU with VNNI.

    The number of rows is not considered, so that small and large blocks of rows are encoded in the same way.
    """
    width, size = sum(part.shape[1] for part in weights), sum(part.numel() for part in weights)
    suitable = width <= MAX_WIDTH and size >= MIN_WEIGHTS and cpu.usable(*rows, *weights)
    return suitable and tile_shape() is not None


class QuantisedVectors(NamedTuple):
    """Vectors in int8; a level is a quantised coordinate."""

    packed: Tensor
    """int32 [blocks, depth, block]: words of four consecutive levels, those of a block's vectors side by side."""
    step: Tensor
    """Value of one level [vectors]."""
    square_sum: Tensor
    """Sum of squared levels, each rounded away from zero [vectors]."""
    level_sum: Tensor
    """Sum of levels [vectors]."""


class Int8Search:
    """Rows and weights quantised once, to be searched for the entries above one bound after another."""

    def __init__(
        self,
        rows: Sequence[Tensor],
        weights: Sequence[Tensor],
        bias: Tensor,
        *,
        factor: float = 1.0,
        reuse: "Int8Search | None" = None,
        tile: TileShape | None = None,
    ) -> None:
        """Parts [R, W] and [F, W], bias [F]; an entry is the sum of factor * rows . weights over the parts, plus bias.

        Overwrites the packed weights of `reuse`, an earlier search: allocating memory takes as long as packing. The
        tile is `tile_shape()` unless given. Raises RuntimeError where the kernel does not work; see `usable`.
        """
        tile = tile or tile_shape()
        kernel = None if tile is None else search_kernel(tile)
        if tile is None or kernel is None:
            raise RuntimeError("int8 search does not work on this machine; ask `usable` first")
        self._tile, self._kernel = tile, kernel
        self._exact, self._bias, self._factor = (rows, weights), bias, factor
        balance, old = _balance(rows, weights), None if reuse is None else reuse.weights.packed
        self.rows: QuantisedVectors = _quantised(rows, balance, tile.rows)
        self.weights: QuantisedVectors = _quantised(weights, 1 / balance, tile.columns, flip=SIGN_FLIP, old=old)

    def above(self, bound: Tensor) -> tuple[Tensor, Tensor]:
        """Entries above a bound [F] >= 0: flat indices, row * F + feature, in order, int64 [N], and values fp32 [N]."""
        found = self._verified(self._candidates(bound), bound) if bool(bound.any()) else None
        if found is None:
            inputs, weight = (torch.cat(list(parts), dim=1) for parts in self._exact)
            return dense_above(inputs * self._factor, weight, self._bias, bound)
        flat, value = found
        order, _ = stable_order(torch.div(flat, len(bound), rounding_mode="floor"), len(self.rows.step))
        return flat[order], value[order]

    def _candidates(self, bound: Tensor) -> Tensor:
        """Candidates int32 [panels, R]: for every row, one bit for each of the panel's columns."""
        left, right = self.rows.packed, self.weights.packed
        terms = self._bound_terms(bound)
        candidates = torch.empty(len(right), len(left) * self._tile.rows, dtype=torch.int32)
        together = max(1, CACHE_BYTES // (4 * left[0].numel()))
        arrays = [as_array(x) for x in (left, right, *terms, candidates)]

        def search(first: int, stop: int) -> None:
            self._kernel(first, stop, *arrays, together)

        run_in_threads(search, len(candidates), candidates.numel() * left.shape[1])
        return candidates[:, : len(self.rows.step)]

    def _bound_terms(self, bound: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of the bound on sums of levels, by row [blocks, 2, block] and by column [panels, 2, panel].

        `vnni.search_kernel` says how they make the bound. The margin is the root of a term of the row plus one of the
        column; sqrt(a + b) <= (a + b) / 2m + m / 2 for every m separates the two, here with the root of the mean as m.
        """
        left, right = self.rows, self.weights
        middle = float((left.square_sum.mean() + right.square_sum.mean()).sqrt())
        start = 128 * left.level_sum - MARGIN * (left.square_sum / (2 * middle) + middle / 2)
        scaled = ((bound - self._bias) / (self._factor * right.step)).clamp(-FLOAT32_MAX, FLOAT32_MAX)
        margin = MARGIN * right.square_sum / (2 * middle)
        return (
            _blocked(self._tile.rows, (start, FLOAT32_MAX), (1 / left.step, 0.0)),
            _blocked(self._tile.columns, (scaled, FLOAT32_MAX), (margin, 0.0)),
        )

    def _verified(self, candidates: Tensor, bound: Tensor) -> tuple[Tensor, Tensor] | None:
        """Candidates that are above the bound in fp32, in feature order; None where there are too many candidates."""
        columns, words = self._tile.columns, as_array(candidates).view(np.uint32)
        parts = [(as_array(rows), as_array(weights)) for rows, weights in zip(*self._exact, strict=True)]
        found: dict[int, tuple[Tensor, Tensor]] = {}
        overfull: list[int] = []

        def verify(first: int, stop: int) -> None:
            features = slice(first * columns, min(stop * columns, len(bound)))
            begin = np.zeros((stop - first) * columns + 1, np.int64)
            capacity = (stop - first) * columns * candidates.shape[1] // MIN_ENTRIES_PER_CANDIDATE + columns
            row = np.empty(capacity, np.int64)
            count = loop_named("list_candidates")(first, stop, words, columns, begin, row)
            if count > len(row):
                overfull.append(first)
                return
            value, flat = torch.zeros(count), torch.empty(count, dtype=torch.int64)
            for x, w in parts:  # source by source: the rows of one stay in the cache
                products = (begin, row, x, w[features], np.float32(self._factor), as_array(value))
                loop_named("inner_products")(0, len(w[features]), *products)
            terms = as_array(self._bias[features]), as_array(bound[features]), len(bound), as_array(flat)
            kept = loop_named("keep_above")(begin, row, as_array(value), *terms)
            found[first] = flat[:kept] + features.start, value[:kept]

        run_in_threads(verify, len(candidates), candidates.numel() * columns)
        if overfull:
            return None
        flats, values = zip(*(found[first] for first in sorted(found)), strict=True)
        return torch.cat(flats), torch.cat(values)


def _balance(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Factors for coordinates of rows, and divisors for those of weights, that give both the same mean square [ΣW]."""

    def squares(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part[:: max(1, len(part) // BALANCE_SAMPLE)].square().mean(dim=0) for part in parts])

    return ((squares(weights) + 1e-12) / (squares(rows) + 1e-12)).pow(0.25)


def _quantised(
    parts: Sequence[Tensor], balance: Tensor, block: int, *, flip: int = 0, old: Tensor | None = None
) -> QuantisedVectors:
    """Vectors, in parts [vectors, W], times balance, in int8; `old` is memory to be overwritten if its shape fits."""
    vectors, width = len(parts[0]), len(balance)
    size = (-(-vectors // block), -(-width // 4), block)
    packed = old if old is not None and old.shape == size else _aligned(size)
    terms = torch.empty(3, vectors)
    dither, loop = _dither(flip, width), loop_named("pack")
    arrays = tuple(map(as_array, parts)), as_array(balance), dither, np.int32(flip), as_array(packed), as_array(terms)
    run_in_threads(lambda first, stop: loop(first, stop, *arrays), size[0], vectors * width)
    return QuantisedVectors(packed, *terms)


def _aligned(size: tuple[int, int, int]) -> Tensor:
    """Zeros int32 at an address that is a multiple of 64, as loads of whole registers need it."""
    count = size[0] * size[1] * size[2]
    memory = torch.zeros(count + 16, dtype=torch.int32)
    return memory[-memory.data_ptr() % 64 // 4 :][:count].view(size)


@cache
def _dither(flip: int, width: int) -> np.ndarray:
    """Random numbers from 0 to 1 [width + DITHER_OFFSETS] for stochastic rounding; weights have others than rows."""
    return np.random.default_rng([abs(flip), width]).random(width + DITHER_OFFSETS, dtype=np.float32)


def _blocked(block: int, *terms: tuple[Tensor, float]) -> Tensor:
    """Terms [n], each with the value that fills its last block, as [blocks, terms, block]."""
    missing = -len(terms[0][0]) % block
    rows = [torch.cat([values, values.new_full((missing,), fill)]).view(-1, block) for values, fill in terms]
    return torch.stack(rows, dim=1)
