"""Kernels: the products of a crosscoder that touch only active entries, and the one dense product that finds them.

Only the encoder product is dense, and only what exceeds a bound is kept of it. Decoding, the gradient of the
activations and the gradients of both weights need just the (row, feature) pairs that are active: `rows * k` of
`rows * features`. `SparsePattern` holds these pairs in row order and in feature order, so that every sum runs over
contiguous entries. The sums are in fp32: casting the weights would cost more than it saves. `int8_search` can spare the
dense product.

On a CPU the loops of `trainer.kernels.cpu` do what torch has no good operation for, on a GPU the kernels of
`trainer.kernels.gpu`; elsewhere, and without numba or Triton, torch does it all. Axes: R rows, F features of one group,
W width of one source, N active pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from trainer.kernels import cpu, gpu

BLOCK = 2**22
"""Entries of the dense product on a CPU at a time: so few that they are still in its cache when they are looked at."""
LARGE_BLOCK = 2**27
"""Entries of the dense product elsewhere at a time: a quarter of a gigabyte, however large the batch."""
LEAST_ROWS = 256
"""Rows of the dense product at a time at least; with fewer it is no longer at full speed."""

SHARED_BY = 4
"""Rows per vector from which it pays to read each vector once, rather than once for every row that needs it."""


class SparsePattern:
    """Which features of one group are active on which rows of a batch."""

    def __init__(self, row: Tensor, feature: Tensor, *, rows: int, features: int) -> None:
        """Pairs in row order: row int64 [N] (not decreasing), feature int64 [N]."""
        self.row, self.feature = row, feature
        self.rows, self.features = rows, features
        self.row_offsets = _offsets(row, rows)
        if cpu.AVAILABLE and feature.device.type == "cpu":
            self.by_feature, self.feature_offsets = cpu.order_by(feature.contiguous(), features)
        else:
            self.by_feature = torch.argsort(feature, stable=True)
            self.feature_offsets = _offsets(self.feature_by_feature, features)
        self.row_by_feature = row[self.by_feature]

    def __len__(self) -> int:
        return self.row.numel()

    def pairs(self, value: Tensor) -> cpu.Pairs:
        """The pairs in feature order with their values [N]."""
        return cpu.Pairs(self.feature_offsets, self.row_by_feature, value[self.by_feature])

    @cached_property
    def feature_by_feature(self) -> Tensor:
        """Feature of every pair in feature order int64 [N]."""
        return self.feature[self.by_feature]

    @cached_property
    def row_runs(self) -> gpu.SegmentIndex:
        """For a GPU: the features of every row."""
        return gpu.SegmentIndex(self.row_offsets, self.feature, self.features)

    @cached_property
    def feature_runs(self) -> gpu.SegmentIndex:
        """For a GPU: the rows of every feature."""
        return gpu.SegmentIndex(self.feature_offsets, self.row_by_feature, self.rows)


def _offsets(keys: Tensor, count: int) -> Tensor:
    """Where each key's run begins in sorted keys, and their number at the end int64 [count + 1]."""
    return torch.searchsorted(keys, torch.arange(count + 1, device=keys.device))


def sum_by_row(pattern: SparsePattern, value: Tensor, vectors: Tensor) -> Tensor:
    """For each row, its active features' vectors [F, W] weighted by value [N]; gives [R, W]."""
    if gpu.usable(value, vectors):
        return gpu.weighted_sums(pattern.row_runs, value, vectors, vectors.new_empty(pattern.rows, vectors.shape[1]))
    if not _read_once(pattern, value, vectors):
        return _bags(pattern.feature, pattern.row_offsets, value, vectors)
    out = torch.zeros(pattern.rows, vectors.shape[1])
    cpu.add_decoded([(pattern.pairs(value), vectors, out)], 1.0)
    return out


def subtract_decoded(terms: Sequence[tuple[SparsePattern, Tensor, Tensor, Tensor]]) -> None:
    """Take the sums by row of a pattern, value [N] and vectors [F, W] from a matrix [R, W], in place, for each four."""
    once = [_read_once(*term[:3]) and cpu.usable(term[3]) for term in terms]
    for (pattern, value, vectors, out), fast in zip(terms, once, strict=True):
        if gpu.usable(value, vectors, out):
            gpu.weighted_sums(pattern.row_runs, value, vectors, out, factor=-1.0, add=True)
        elif not fast:
            out.sub_(_bags(pattern.feature, pattern.row_offsets, value, vectors))
    rest = [(p.pairs(value), vectors, out) for (p, value, vectors, out), fast in zip(terms, once, strict=True) if fast]
    if rest:
        cpu.add_decoded(rest, -1.0)


def _read_once(pattern: SparsePattern, value: Tensor, vectors: Tensor) -> bool:
    """Whether sums by row are better taken vector by vector than row by row."""
    return len(pattern) >= SHARED_BY * len(vectors) and cpu.usable(value, vectors)


def sum_by_feature(pattern: SparsePattern, value: Tensor, vectors: Tensor) -> Tensor:
    """For each feature, the vectors [R, W] of rows where it is active weighted by value [N]; gives [F, W]."""
    if gpu.usable(value, vectors):
        room = vectors.new_empty(pattern.features, vectors.shape[1])
        return gpu.weighted_sums(pattern.feature_runs, value[pattern.by_feature], vectors, room)
    if cpu.usable(value, vectors):
        room = vectors.new_empty(pattern.features, vectors.shape[1])
        return cpu.weighted_sums(pattern.pairs(value), vectors, room)
    return _bags(pattern.row_by_feature, pattern.feature_offsets, value[pattern.by_feature], vectors)


def _bags(index: Tensor, offsets: Tensor, weight: Tensor, vectors: Tensor) -> Tensor:
    if not index.numel():
        return vectors.new_zeros(offsets.numel() - 1, vectors.shape[1])
    return torch.nn.functional.embedding_bag(
        index, vectors, offsets, mode="sum", per_sample_weights=weight.to(vectors.dtype), include_last_offset=True
    )


def products(pattern: SparsePattern, left: Tensor, right: Tensor) -> Tensor:
    """Inner product of left [R, W] and right [F, W] for every active pair; gives [N]."""
    if not len(pattern):
        return left.new_zeros(0)
    left = left.contiguous()
    if gpu.usable(left, right):
        found = left.new_empty(len(pattern), dtype=torch.float32)
        gpu.inner_products(pattern.row_by_feature, pattern.feature_by_feature, left, right, found)
        return torch.empty_like(found).index_copy_(0, pattern.by_feature, found)
    if cpu.usable(left, right):
        found = cpu.inner_products(pattern.pairs(left.new_empty(len(pattern))), left, right)
        return torch.empty_like(found).index_copy_(0, pattern.by_feature, found)
    # This is how embedding_bag differentiates its per-sample weights; nothing else in torch is as fast at it.
    slow: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(  # noqa: SLF001
        left, right, pattern.feature, pattern.row_offsets[:-1], pattern.row, 0
    )
    return slow


def dense_above(inputs: Tensor, weight: Tensor, bias: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of inputs [R, W] . weight [F, W] + bias [F] above a bound [F] that is not negative.

    Gives their flat indices, row * F + feature, in order, int64 [N], and their values, fp32 [N]. The product and the
    comparison are in the dtype of the inputs. It comes in blocks of rows.
    """
    return begin_dense_above(inputs, weight, bias, bound)()


def begin_dense_above(
    inputs: Tensor, weight: Tensor, bias: Tensor, bound: Tensor
) -> Callable[[], tuple[Tensor, Tensor]]:
    """What gives `dense_above` when it is called; a GPU is at work on it from now on."""
    rows, features = len(inputs), len(weight)
    size = BLOCK if inputs.device.type == "cpu" else LARGE_BLOCK
    step = max(1, min(rows, max(size // features, LEAST_ROWS)))
    room = inputs.new_empty(step, features)

    def blocks() -> Iterator[Tensor]:
        for part in inputs.split(step) if rows else ():
            yield torch.addmm(bias, part, weight.T, out=room[: len(part)])

    if gpu.usable(room):
        return gpu.Search(blocks, bound.to(inputs.dtype).contiguous(), rows * features).found
    return lambda: _joined([entries_above(dense, bound) for dense in blocks()], step * features, bound)


def _joined(found: list[tuple[Tensor, Tensor]], entries: int, bound: Tensor) -> tuple[Tensor, Tensor]:
    """What was found in several blocks of so many entries, as if in one."""
    if not found:
        return bound.new_zeros(0, dtype=torch.int64), bound.new_zeros(0, dtype=torch.float32)
    places = [place + number * entries for number, (place, _) in enumerate(found)]
    return torch.cat(places), torch.cat([value for _, value in found])


def entries_above(dense: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices in order, int64 [N], and values, fp32 [N], of a matrix's entries above the bound of their column."""
    bound = bound.to(dense.dtype)
    if gpu.usable(dense):
        return gpu.Search(lambda: iter([dense]), bound.contiguous(), dense.numel()).found()
    if cpu.AVAILABLE and dense.device.type == "cpu" and dense.dtype == torch.bfloat16 and dense.is_contiguous():
        return cpu.above(dense, bound.contiguous())
    place = torch.nonzero((dense > bound).reshape(-1)).squeeze(1)
    return place, dense.reshape(-1)[place].float()
