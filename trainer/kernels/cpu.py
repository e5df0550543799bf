"""Compiled loops for the CPU, called on tensors: each splits its range over the threads that torch uses.

Numba compiles a loop on first use and keeps the machine code for the next process. `usable` says whether tensors suit
the loops; callers use torch where they do not, and everywhere when numba is not there.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

AVAILABLE = find_spec("numba") is not None
"""Some platforms have no wheel of it."""
Loop = Callable[..., Any]
WORTH_A_THREAD = 2**20
"""Multiplications for which it pays to wake another thread."""
PAIRS_PER_INDEX = 2
"""What an index costs by itself, in pairs: its result is written, however few are summed."""
SELDOM = 32
"""Of so many entries about one is above its bound; room for more is made when needed."""


def usable(*tensors: Tensor) -> bool:
    """Whether the loops can run on these tensors of values: fp32 on the CPU, contiguous."""
    return AVAILABLE and all(x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() for x in tensors)


class Pairs(NamedTuple):
    """Active pairs of a group in feature order. Axes: N pairs, F features, R rows, W width."""

    offsets: Tensor
    """Where each feature's pairs begin, and their number at the end, int64 [F + 1]."""
    row: Tensor
    """Row of each pair int64 [N]."""
    value: Tensor
    """fp32 [N]."""

    @property
    def work(self) -> int:
        """Pairs, or features where there are more: each costs a pass over a vector."""
        return max(len(self.row), len(self.offsets))


def add_decoded(terms: Sequence[tuple[Pairs, Tensor, Tensor]], factor: float) -> None:
    """To the last of each three, [R, W], add the pairs' vectors [F, W] weighted by value and factor; R is the same."""
    loop, scale = loop_named("spread_sums"), np.float32(factor)
    prepared = [(*map(as_array, (*pairs, vectors)), scale, as_array(out)) for pairs, vectors, out in terms]

    def part(first: int, stop: int) -> None:
        for arrays in prepared:
            loop(first, stop, *arrays)

    share_out(part, len(terms[0][2]), sum(pairs.work * vectors.shape[1] for pairs, vectors, _ in terms))


def weighted_sums(pairs: Pairs, vectors: Tensor, out: Tensor) -> Tensor:
    """For each feature, the vectors [R, W] of its pairs' rows, weighted, into out [F, W]."""
    loop, arrays = loop_named("weighted_sums"), tuple(map(as_array, (*pairs, vectors)))
    share_out(
        lambda first, stop: loop(first, stop, *arrays, np.float32(1), as_array(out)),
        len(out),
        pairs.work * vectors.shape[1],
        pairs.offsets,
    )
    return out


def inner_products(pairs: Pairs, left: Tensor, right: Tensor) -> Tensor:
    """Inner products of left [R, W] at each pair's row with right [F, W] at its feature, in the pairs' order [N]."""
    out = torch.zeros(len(pairs.row))
    loop, arrays = loop_named("inner_products"), tuple(map(as_array, (pairs.offsets, pairs.row, left, right)))
    share_out(
        lambda first, stop: loop(first, stop, *arrays, np.float32(1), as_array(out)),
        len(right),
        pairs.work * left.shape[1],
        pairs.offsets,
    )
    return out


def add_products(left: sp.csr_array, right: sp.csr_array, out: np.ndarray) -> None:
    """To out, fp32 [F, G], add the product of sparse fp32 matrices [F, R] and [R, G]."""
    loop, one, other = loop_named("sparse_products"), *((m.indptr, m.indices, m.data) for m in (left, right))
    share_out(lambda first, stop: loop(first, stop, one, other, out), len(out), left.nnz * right.nnz)


class WeightBlock(NamedTuple):
    """One weight of a group with what its gradient is made of."""

    beside: Tensor
    """Errors of the target or inputs of the source [R, W]."""
    factor: float
    weight: Tensor
    """[F, W]; used of decoders only."""
    gradient: Tensor
    """[F, W]; written."""


def write_gradients(
    pairs: Pairs, decoders: Sequence[WeightBlock], encoders: Sequence[WeightBlock], bias: Tensor
) -> None:
    """Gradients of a group's weights and bias [F] each thread for features of its own.

    Every target has a decoder of its own.
    """
    products, sums, weighted = map(loop_named, ("inner_products", "sums", "weighted_sums"))
    offsets, row, value = map(as_array, pairs)
    pull = np.zeros_like(value)
    down = [(as_array(b.beside), as_array(b.weight), np.float32(b.factor), as_array(b.gradient)) for b in decoders]
    up = [(as_array(b.beside), np.float32(b.factor), as_array(b.gradient)) for b in encoders]

    def part(first: int, stop: int) -> None:
        for beside, weight, factor, gradient in down:
            products(first, stop, offsets, row, beside, weight, factor, pull)
            weighted(first, stop, offsets, row, value, beside, factor, gradient)
        for beside, factor, gradient in up:
            weighted(first, stop, offsets, row, pull, beside, factor, gradient)
        sums(first, stop, offsets, pull, as_array(bias))

    work = pairs.work * sum(b.beside.shape[1] for b in (*decoders, *decoders, *encoders))
    share_out(part, len(bias), work, pairs.offsets)


def above(values: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices int64 and values fp32 of a bf16 matrix's entries above the bound of their column, bf16, >= 0."""
    # Non-negative bf16 numbers compare as their bits do, and bits of negative ones are negative integers.
    arrays = as_array(values.view(torch.int16)), as_array(bound.view(torch.int16))
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def part(first: int, stop: int) -> None:
        found[first] = _above(first, stop, *arrays)

    share_out(part, len(values), values.numel())
    places, bits = zip(*(found[first] for first in sorted(found)), strict=True)
    return torch.cat(places), torch.cat(bits).view(torch.float32)


def _above(first: int, stop: int, values: np.ndarray, bound: np.ndarray) -> tuple[Tensor, Tensor]:
    """The same of some rows, and the bits of the values."""
    room = (stop - first) * values.shape[1] // SELDOM + 1
    while True:
        place, bits = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int32)
        count = loop_named("find_above")(first, stop, values, bound, as_array(place), as_array(bits))
        if count <= room:
            return place[:count], bits[:count]
        room = count


def order_by(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Stable order of keys int64 [N] below `count`, and where each key's run begins in it [count + 1]."""
    order, offsets = torch.empty_like(keys), torch.zeros(count + 1, dtype=torch.int64)
    loop_named("counting_sort")(keys.numpy(), order.numpy(), offsets.numpy())
    return order, offsets


def share_out(part: Callable[[int, int], None], count: int, work: int, offsets: Tensor | None = None) -> None:
    """Run a part on all indices below `count`, each thread on one range of them, this one included.

    The ranges are of equal length; with `offsets` of the pairs of every index, [count + 1], of equal work.
    """
    parts = max(1, min(torch.get_num_threads(), count, work // WORTH_A_THREAD))
    edges = [count * number // parts for number in range(parts + 1)]
    if offsets is not None and parts > 1:
        done = offsets + PAIRS_PER_INDEX * torch.arange(count + 1)
        edges[1:-1] = torch.searchsorted(done, done[-1] * torch.arange(1, parts) // parts).tolist()
    others = [_pool(parts - 1).submit(part, *edge) for edge in pairwise(edges[:-1])]
    part(*edges[-2:])
    for one in others:
        one.result()


def as_array(tensor: Tensor) -> Any:
    """The same memory for numba."""
    return tensor.detach().numpy()


@cache
def loop_named(name: str) -> Loop:
    """A compiled loop; numba takes a while to import, so not before it is needed."""
    loop: Loop = getattr(import_module("trainer.kernels.numba_loops"), name)
    return loop


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):  # threads do not survive a fork
        os.register_at_fork(after_in_child=_pool.cache_clear)
    return ThreadPoolExecutor(threads, thread_name_prefix="loop")
