"""The interface to all kernels: products over active entries, and the dense product that finds them.

Only the encoder product is dense, and only its entries above a bound are kept. Decoding, the gradient of the
activations and the gradients of both weights need just the (row, feature) pairs that are active: `rows * k` of
`rows * features`. `SparsePattern` holds these pairs in row order and in feature order, so that every sum runs over
contiguous entries. The sums are in fp32: casting the weights would cost more than it saves. `int8_search` can replace
the dense product.

Each operation runs on the numba loops of `trainer.kernels.cpu`, on the Triton kernels of `trainer.kernels.gpu`, or,
elsewhere and without numba or Triton, on torch. Axes: R rows, F features of one group,
W width of one source, N active pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from trainer.kernels import cpu, gpu

BLOCK = 2**22
"""Entries of the dense product at a time on a CPU: few enough to be in the cache still when they are compared."""
LARGE_BLOCK = 2**27
"""Entries of the dense product at a time elsewhere: a quarter of a gigabyte in bf16, however large the batch."""
MIN_ROWS = 256
"""Fewest rows of the dense product at a time; with fewer it is slower."""

MIN_ROWS_PER_VECTOR = 4
"""Active rows per vector from which sums by row are faster in feature order, which reads each vector once."""


class SparsePattern:
    """Active (row, feature) pairs of one group on a batch, in row order and in feature order."""

    def __init__(self, row: Tensor, feature: Tensor, *, rows: int, features: int) -> None:
        """Pairs in row order: row int64 [N], not decreasing, and feature int64 [N]."""
        self.row, self.feature = row, feature
        self.rows, self.features = rows, features
        self.row_offsets = _offsets(row, rows)
        if cpu.available() and feature.device.type == "cpu":
            self.by_feature, self.feature_offsets = cpu.stable_order(feature.contiguous(), features)
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
    def row_segments(self) -> gpu.SegmentIndex:
        """For a GPU: one segment per row, indexing its features."""
        return gpu.SegmentIndex(self.row_offsets, self.feature, self.features)

    @cached_property
    def feature_segments(self) -> gpu.SegmentIndex:
        """For a GPU: one segment per feature, indexing its rows."""
        return gpu.SegmentIndex(self.feature_offsets, self.row_by_feature, self.rows)


def _offsets(keys: Tensor, count: int) -> Tensor:
    """Key j has the sorted keys from offsets[j] up to offsets[j + 1]; int64 [count + 1]."""
    return torch.searchsorted(keys, torch.arange(count + 1, device=keys.device))


def sum_by_row(pattern: SparsePattern, value: Tensor, vectors: Tensor) -> Tensor:
    """Sum of each row's active features' vectors [F, W], weighted by value [N]; returns [R, W]."""
    if gpu.usable(value, vectors):
        out = vectors.new_empty(pattern.rows, vectors.shape[1])
        return gpu.weighted_sums(pattern.row_segments, value, vectors, out)
    if not _vector_major(pattern, value, vectors):
        return _embedding_bag_sum(pattern.feature, pattern.row_offsets, value, vectors)
    out = torch.zeros(pattern.rows, vectors.shape[1])
    cpu.add_decoded([(pattern.pairs(value), vectors, out)], 1.0)
    return out


def subtract_decoded(terms: Sequence[tuple[SparsePattern, Tensor, Tensor, Tensor]]) -> None:
    """For each (pattern, value [N], vectors [F, W], out [R, W]), subtract the sums by row from out in place."""
    by_loops = [_vector_major(*term[:3]) and cpu.usable(term[3]) for term in terms]
    for (pattern, value, vectors, out), by_loop in zip(terms, by_loops, strict=True):
        if gpu.usable(value, vectors, out):
            gpu.weighted_sums(pattern.row_segments, value, vectors, out, factor=-1.0, add=True)
        elif not by_loop:
            out.sub_(_embedding_bag_sum(pattern.feature, pattern.row_offsets, value, vectors))
    rest = [term for term, by_loop in zip(terms, by_loops, strict=True) if by_loop]
    if rest:
        cpu.add_decoded([(pattern.pairs(value), vectors, out) for pattern, value, vectors, out in rest], -1.0)


def _vector_major(pattern: SparsePattern, value: Tensor, vectors: Tensor) -> bool:
    """Whether sums by row are faster in feature order, vector by vector."""
    return len(pattern) >= MIN_ROWS_PER_VECTOR * len(vectors) and cpu.usable(value, vectors)


def sum_by_feature(pattern: SparsePattern, value: Tensor, vectors: Tensor) -> Tensor:
    """Sum of the vectors [R, W] of the rows on which each feature is active, weighted by value [N]; returns [F, W]."""
    if gpu.usable(value, vectors):
        out = vectors.new_empty(pattern.features, vectors.shape[1])
        return gpu.weighted_sums(pattern.feature_segments, value[pattern.by_feature], vectors, out)
    if cpu.usable(value, vectors):
        out = vectors.new_empty(pattern.features, vectors.shape[1])
        return cpu.weighted_sums(pattern.pairs(value), vectors, out)
    return _embedding_bag_sum(pattern.row_by_feature, pattern.feature_offsets, value[pattern.by_feature], vectors)


def _embedding_bag_sum(index: Tensor, offsets: Tensor, weight: Tensor, vectors: Tensor) -> Tensor:
    if not index.numel():
        return vectors.new_zeros(offsets.numel() - 1, vectors.shape[1])
    return torch.nn.functional.embedding_bag(
        index, vectors, offsets, mode="sum", per_sample_weights=weight.to(vectors.dtype), include_last_offset=True
    )


def inner_products(pattern: SparsePattern, left: Tensor, right: Tensor) -> Tensor:
    """Inner product of left [R, W] and right [F, W] for every active pair, in row order; returns [N]."""
    if not len(pattern):
        return left.new_zeros(0)
    left = left.contiguous()
    if gpu.usable(left, right):
        in_feature_order = left.new_empty(len(pattern), dtype=torch.float32)
        gpu.inner_products(pattern.row_by_feature, pattern.feature_by_feature, left, right, in_feature_order)
        return torch.empty_like(in_feature_order).index_copy_(0, pattern.by_feature, in_feature_order)
    if cpu.usable(left, right):
        in_feature_order = cpu.inner_products(pattern.pairs(left.new_empty(len(pattern))), left, right)
        return torch.empty_like(in_feature_order).index_copy_(0, pattern.by_feature, in_feature_order)
    # The backward of embedding_bag's per-sample weights: the fastest operation of torch for this.
    slow: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(  # noqa: SLF001
        left, right, pattern.feature, pattern.row_offsets[:-1], pattern.row, 0
    )
    return slow


def dense_above(inputs: Tensor, weight: Tensor, bias: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of inputs [R, W] . weight [F, W] + bias [F] above a bound [F] that is not negative.

    Returns their flat indices, row * F + feature, in order, int64 [N], and their values, fp32 [N]. The product and the
    comparison are in the dtype of the inputs, one block of rows at a time.
    """
    return begin_dense_above(inputs, weight, bias, bound)()


def begin_dense_above(
    inputs: Tensor, weight: Tensor, bias: Tensor, bound: Tensor
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Starts `dense_above` and returns a function for its result; a GPU works on it in the meantime."""
    rows, features = len(inputs), len(weight)
    size = BLOCK if inputs.device.type == "cpu" else LARGE_BLOCK
    step = max(1, min(rows, max(size // features, MIN_ROWS)))
    buffer = inputs.new_empty(step, features)

    def blocks() -> Iterator[Tensor]:
        for part in inputs.split(step) if rows else ():
            yield torch.addmm(bias, part, weight.T, out=buffer[: len(part)])

    if gpu.usable(buffer):
        return gpu.EntrySearch(blocks, bound.to(inputs.dtype).contiguous(), rows * features).result
    return lambda: _concatenate_blocks([entries_above(dense, bound) for dense in blocks()], step * features, bound)


def _concatenate_blocks(found: list[tuple[Tensor, Tensor]], entries: int, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Results from consecutive blocks of `entries` entries each, with flat indices into the whole matrix."""
    if not found:
        return bound.new_zeros(0, dtype=torch.int64), bound.new_zeros(0, dtype=torch.float32)
    indices = [index + number * entries for number, (index, _) in enumerate(found)]
    return torch.cat(indices), torch.cat([value for _, value in found])


def entries_above(dense: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices in order, int64 [N], and values, fp32 [N], of a matrix's entries above their column's bound [F]."""
    bound = bound.to(dense.dtype)
    if gpu.usable(dense):
        return gpu.EntrySearch(lambda: iter([dense]), bound.contiguous(), dense.numel()).result()
    if cpu.available() and dense.device.type == "cpu" and dense.dtype == torch.bfloat16 and dense.is_contiguous():
        return cpu.find_above(dense, bound.contiguous())
    index = torch.nonzero((dense > bound).reshape(-1)).squeeze(1)
    return index, dense.reshape(-1)[index].float()
