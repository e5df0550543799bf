"""Compiled loops for the CPU, called on tensors: each splits its range over the threads that torch uses.

Numba compiles a loop on first use and keeps the machine code for the next process. `usable` says whether tensors suit
the loops; callers use torch where they do not, and everywhere when numba is not there.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise

import torch
from torch import Tensor

AVAILABLE = find_spec("numba") is not None
"""Some platforms have no wheel of it."""
Loop = Callable[..., None]
WORTH_A_THREAD = 2**20
"""Multiplications for which it pays to wake another thread."""


def usable(*tensors: Tensor) -> bool:
    """Whether the loops can run on these tensors of values: fp32 on the CPU, contiguous."""
    return AVAILABLE and all(x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() for x in tensors)


def spread_sums(offsets: Tensor, row: Tensor, value: Tensor, vectors: Tensor, rows: int) -> Tensor:
    """For each row, the vectors [F, W] of its pairs, weighted [N]: [rows, W]; f's pairs between offsets [F + 1]."""
    out = torch.zeros(rows, vectors.shape[1])
    _run("spread_sums", rows, len(row) * vectors.shape[1], offsets, row, value, vectors, out)
    return out


def weighted_sums(offsets: Tensor, row: Tensor, value: Tensor, vectors: Tensor, out: Tensor) -> Tensor:
    """For each feature, the vectors [R, W] of its pairs' rows [N], weighted, into out [F, W]."""
    _run("weighted_sums", len(out), out.numel(), offsets, row, value, vectors, out)
    return out


def inner_products(offsets: Tensor, row: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Inner products [N] of left [R, W] at each pair's row with right [F, W]; pairs by f between offsets [F + 1]."""
    out = torch.empty(len(row))
    _run("inner_products", len(right), len(row) * left.shape[1], offsets, row, left, right, out)
    return out


def above(values: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices int64 and values fp32 of a bf16 matrix's entries above the bound of their column, bf16, >= 0."""
    # Non-negative bf16 numbers compare as their bits do, and bits of negative ones are negative integers.
    bits, least = values.view(torch.int16), bound.view(torch.int16)
    begins = torch.zeros(len(values) + 1, dtype=torch.int64)
    _run("count_above", len(values), values.numel(), bits, least, begins[1:])
    begins = begins.cumsum(0)
    place = torch.empty(int(begins[-1]), dtype=torch.int64)
    found = torch.empty(len(place), dtype=torch.int32)
    _run("fill_above", len(values), values.numel(), bits, least, begins, place, found)
    return place, found.view(torch.float32)


def order_by(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Stable order of keys int64 [N] below `count`, and where each key's run begins in it [count + 1]."""
    order, offsets = torch.empty_like(keys), torch.zeros(count + 1, dtype=torch.int64)
    _loop("counting_sort")(keys.numpy(), order.numpy(), offsets.numpy())
    return order, offsets


def _run(name: str, count: int, work: int, *tensors: Tensor) -> None:
    """Run a loop over all indices below `count`, each thread on one range of them, this one included."""
    loop, arrays = _loop(name), [x.detach().numpy() for x in tensors]
    parts = max(1, min(torch.get_num_threads(), count, work // WORTH_A_THREAD))
    edges = [count * part // parts for part in range(parts + 1)]
    others = [_pool(parts - 1).submit(loop, *edge, *arrays) for edge in pairwise(edges[:-1])]
    loop(*edges[-2:], *arrays)
    for one in others:
        one.result()


@cache
def _loop(name: str) -> Loop:
    """A compiled loop; numba takes a while to import, so not before it is needed."""
    loop: Loop = getattr(import_module("trainer.loops"), name)
    return loop


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="loop")
