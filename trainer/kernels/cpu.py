"""Sparse products on a CPU by compiled loops, each split over torch's threads.

Numba compiles a loop on first use and caches the machine code on disk. `usable` says whether the loops accept given
tensors; callers use torch where they do not, and everywhere without numba.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

Loop = Callable[..., Any]
WORK_PER_THREAD = 2**20
"""Multiplications from which another thread is worth waking."""
PAIRS_PER_INDEX = 2
"""Fixed cost of an index, in pairs: its result is written however few pairs it sums."""
ENTRIES_PER_SLOT = 32
"""Entries of the matrix per slot of the result buffer; if more are above the bound, the search runs again."""


@cache
def available() -> bool:
    """Whether numba works here: some platforms have no wheels, and an installed one may not suit this NumPy."""
    try:
        import_module("numba")
    except (ImportError, OSError, AttributeError, SystemError):
        return False
    return True


def usable(*tensors: Tensor) -> bool:
    """Whether the loops can run on these value tensors: fp32, on the CPU, contiguous."""
    suitable = all(x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() for x in tensors)
    return suitable and available()


class Pairs(NamedTuple):
    """Active (row, feature) pairs of a group in feature order. Axes: N pairs, F features, R rows, W width."""

    offsets: Tensor
    """Feature f has the pairs from offsets[f] up to offsets[f + 1]; int64 [F + 1]."""
    row: Tensor
    """Row of each pair, int64 [N]."""
    value: Tensor
    """Activation of each pair, fp32 [N]."""

    @property
    def work(self) -> int:
        """Passes over a vector: one per pair, and at least one per feature."""
        return max(len(self.row), len(self.offsets))


def add_decoded(terms: Sequence[tuple[Pairs, Tensor, Tensor]], factor: float) -> None:
    """For each (pairs, vectors [F, W], out [R, W]), add factor * value * vector to out at the pairs' rows."""
    loop, scale = loop_named("add_to_rows"), np.float32(factor)
    prepared = [(*map(as_array, (*pairs, vectors)), scale, as_array(out)) for pairs, vectors, out in terms]

    def part(first: int, stop: int) -> None:
        for arrays in prepared:
            loop(first, stop, *arrays)

    run_in_threads(part, len(terms[0][2]), sum(pairs.work * vectors.shape[1] for pairs, vectors, _ in terms))


def weighted_sums(pairs: Pairs, vectors: Tensor, out: Tensor) -> Tensor:
    """Sums by feature of value * vectors [R, W] at the pairs' rows, written to out [F, W]."""
    loop, arrays = loop_named("weighted_sums"), tuple(map(as_array, (*pairs, vectors)))
    run_in_threads(
        lambda first, stop: loop(first, stop, *arrays, np.float32(1), as_array(out)),
        len(out),
        pairs.work * vectors.shape[1],
        pairs.offsets,
    )
    return out


def inner_products(pairs: Pairs, left: Tensor, right: Tensor) -> Tensor:
    """Inner product of left [R, W] at each pair's row and right [F, W] at its feature, in feature order [N]."""
    out = torch.zeros(len(pairs.row))
    loop, arrays = loop_named("inner_products"), tuple(map(as_array, (pairs.offsets, pairs.row, left, right)))
    run_in_threads(
        lambda first, stop: loop(first, stop, *arrays, np.float32(1), as_array(out)),
        len(right),
        pairs.work * left.shape[1],
        pairs.offsets,
    )
    return out


def add_sparse_product(left: sp.csr_array, right: sp.csr_array, out: np.ndarray) -> None:
    """Add the product of sparse fp32 matrices [F, R] and [R, G] to out, fp32 [F, G]."""
    loop, one, other = loop_named("sparse_products"), *((m.indptr, m.indices, m.data) for m in (left, right))
    run_in_threads(lambda first, stop: loop(first, stop, one, other, out), len(out), left.nnz * right.nnz)


class WeightBlock(NamedTuple):
    """One weight of a group with the tensors that its gradient is computed from."""

    vectors: Tensor
    """One vector per row [R, W]: the target's error for a decoder, the source's input for an encoder."""
    factor: float
    """Constant factor of the gradient."""
    weight: Tensor
    """The weight itself [F, W]; read for decoders only."""
    gradient: Tensor
    """Its gradient [F, W]; overwritten."""


def write_gradients(
    pairs: Pairs, decoders: Sequence[WeightBlock], encoders: Sequence[WeightBlock], bias: Tensor
) -> None:
    """Gradients of a group's weights and bias [F], split by features over the threads.

    Decoders must not share a gradient tensor: a tied decoder is not supported here.
    """
    products, sums, weighted = map(loop_named, ("inner_products", "sums", "weighted_sums"))
    offsets, row, value = map(as_array, pairs)
    pre_gradient = np.zeros_like(value)
    decoder_arrays = [
        (as_array(b.vectors), as_array(b.weight), np.float32(b.factor), as_array(b.gradient)) for b in decoders
    ]
    encoder_arrays = [(as_array(b.vectors), np.float32(b.factor), as_array(b.gradient)) for b in encoders]

    def part(first: int, stop: int) -> None:
        for vectors, weight, factor, gradient in decoder_arrays:
            products(first, stop, offsets, row, vectors, weight, factor, pre_gradient)
            weighted(first, stop, offsets, row, value, vectors, factor, gradient)
        for vectors, factor, gradient in encoder_arrays:
            weighted(first, stop, offsets, row, pre_gradient, vectors, factor, gradient)
        sums(first, stop, offsets, pre_gradient, as_array(bias))

    work = pairs.work * sum(b.vectors.shape[1] for b in (*decoders, *decoders, *encoders))
    run_in_threads(part, len(bias), work, pairs.offsets)


def find_above(values: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices, int64, and values, fp32, of a bf16 matrix's entries above their column's bound, bf16 >= 0."""
    # The bits of non-negative bf16 numbers compare as integers like the numbers; those of negative ones are negative.
    arrays = as_array(values.view(torch.int16)), as_array(bound.view(torch.int16))
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def part(first: int, stop: int) -> None:
        found[first] = _find_above_in_rows(first, stop, *arrays)

    run_in_threads(part, len(values), values.numel())
    indices, bits = zip(*(found[first] for first in sorted(found)), strict=True)
    return torch.cat(indices), torch.cat(bits).view(torch.float32)


def _find_above_in_rows(first: int, stop: int, values: np.ndarray, bound: np.ndarray) -> tuple[Tensor, Tensor]:
    """Flat indices and fp32 bits of the entries above the bound in rows `first` to `stop`."""
    capacity = (stop - first) * values.shape[1] // ENTRIES_PER_SLOT + 1
    while True:
        index, bits = torch.empty(capacity, dtype=torch.int64), torch.empty(capacity, dtype=torch.int32)
        count = loop_named("find_above")(first, stop, values, bound, as_array(index), as_array(bits))
        if count <= capacity:
            return index[:count], bits[:count]
        capacity = count


def stable_order(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Stable argsort of keys int64 [N] below `count`, and the offsets at which each key begins in it [count + 1]."""
    order, offsets = torch.empty_like(keys), torch.zeros(count + 1, dtype=torch.int64)
    loop_named("counting_sort")(keys.numpy(), order.numpy(), offsets.numpy())
    return order, offsets


def run_in_threads(part: Callable[[int, int], None], count: int, work: int, offsets: Tensor | None = None) -> None:
    """Call `part(first, stop)` on ranges that cover the indices below `count`, one per thread, and wait for all.

    `work` is the number of multiplications, which limits the number of threads. Ranges have equal length, or, with the
    `offsets` of each index's pairs [count + 1], equal work.
    """
    parts = max(1, min(torch.get_num_threads(), count, work // WORK_PER_THREAD))
    edges = [count * number // parts for number in range(parts + 1)]
    if offsets is not None and parts > 1:
        cost = offsets + PAIRS_PER_INDEX * torch.arange(count + 1)
        edges[1:-1] = torch.searchsorted(cost, cost[-1] * torch.arange(1, parts) // parts).tolist()
    others = [_pool(parts - 1).submit(part, *edge) for edge in pairwise(edges[:-1])]
    part(*edges[-2:])
    for other in others:
        other.result()


def as_array(tensor: Tensor) -> Any:
    """NumPy view of a tensor's memory, for numba."""
    return tensor.detach().numpy()


@cache
def loop_named(name: str) -> Loop:
    """A compiled loop by its name in `numba_loops`, imported on first use because numba takes a while to import."""
    loop: Loop = getattr(import_module("trainer.kernels.numba_loops"), name)
    return loop


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):  # threads do not survive a fork
        os.register_at_fork(after_in_child=_pool.cache_clear)
    return ThreadPoolExecutor(threads, thread_name_prefix="loop")
