"""GPU kernels in Triton: sums and products over active entries, and the search for them.

Results are deterministic: no two programs write the same element, and the order of a sum depends on positions alone.
Matrices are contiguous; sums are in fp32 whatever the inputs. Integers that change from call to call are marked
do_not_specialize: for some of their values Triton would compile the kernel again.
"""

import triton
import triton.language as tl


@triton.jit
def _store(numbers, target, mask, ADD: tl.constexpr):
    """Write numbers where the mask is true, or add them to what is there."""
    if ADD:
        numbers += tl.load(target, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, numbers.to(target.dtype.element_ty), mask=mask)


@triton.jit
def weighted_sums(
    begin,
    end,
    out_row,
    index,
    weight,
    vectors,
    out,
    factor,
    width,
    ADD: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[out_row[p]] = factor * sum of weight[i] * vectors[index[i]] for i from begin[p] up to end[p], or += with ADD.

    One program for every p and COLUMNS columns; p is skipped where out_row[p] is negative.
    """
    program = tl.program_id(0)
    target_row = tl.load(out_row + program)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if target_row >= 0:
        first, stop = tl.load(begin + program), tl.load(end + program)
        total = tl.zeros([COLUMNS], tl.float32)
        for start in range(first, stop, PAIRS):
            i = start + tl.arange(0, PAIRS)
            vector_row = tl.load(index + i, mask=i < stop, other=0)
            scale = tl.load(weight + i, mask=i < stop, other=0.0).to(tl.float32)
            mask = (i < stop)[:, None] & (column < width)[None, :]
            vector = tl.load(vectors + vector_row[:, None] * width + column[None, :], mask=mask, other=0.0)
            total += tl.sum(scale[:, None] * vector.to(tl.float32), axis=0)
        _store(total * factor, out + target_row * width + column, column < width, ADD)


@triton.jit
def decoder_gradients(
    begin,
    end,
    out_row,
    segment,
    row,
    value,
    vectors,
    weight,
    pre_gradient,
    out,
    factor,
    width,
    ADD: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradients of pre-activations and of a decoder in one pass over the errors `vectors`.

    pre_gradient[i] += factor * vectors[row[i]] . weight[segment[p]] for i from begin[p] up to end[p], and
    out[out_row[p]] = factor * sum of value[i] * vectors[row[i]], or += with ADD. One program for every p, with COLUMNS
    no fewer than the width; p is skipped where out_row[p] is negative.
    """
    program = tl.program_id(0)
    target_row = tl.load(out_row + program)
    column = tl.arange(0, COLUMNS)
    if target_row >= 0:
        first, stop = tl.load(begin + program), tl.load(end + program)
        weights = weight + tl.load(segment + program) * width + column
        vector = tl.load(weights, mask=column < width, other=0.0).to(tl.float32)
        total = tl.zeros([COLUMNS], tl.float32)
        for start in range(first, stop, PAIRS):
            i = start + tl.arange(0, PAIRS)
            vector_row = tl.load(row + i, mask=i < stop, other=0)
            scale = tl.load(value + i, mask=i < stop, other=0.0)
            mask = (i < stop)[:, None] & (column < width)[None, :]
            errors = vectors + vector_row[:, None] * width + column[None, :]
            error = tl.load(errors, mask=mask, other=0.0).to(tl.float32)
            before = tl.load(pre_gradient + i, mask=i < stop, other=0.0)
            tl.store(pre_gradient + i, before + factor * tl.sum(error * vector[None, :], axis=1), mask=i < stop)
            total += tl.sum(scale[:, None] * error, axis=0)
        _store(total * factor, out + target_row * width + column, column < width, ADD)


@triton.jit(do_not_specialize=["pairs"])
def inner_products(
    row,
    feature,
    left,
    right,
    out,
    factor,
    pairs,
    width,
    ADD: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[i] = factor * left[row[i]] . right[feature[i]] for every pair i, or += with ADD; PAIRS pairs per program."""
    i = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    left_row = tl.load(row + i, mask=i < pairs, other=0)
    right_row = tl.load(feature + i, mask=i < pairs, other=0)
    total = tl.zeros([PAIRS, COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (i < pairs)[:, None] & (column < width)[None, :]
        x = tl.load(left + left_row[:, None] * width + column[None, :], mask=mask, other=0.0)
        y = tl.load(right + right_row[:, None] * width + column[None, :], mask=mask, other=0.0)
        total += x.to(tl.float32) * y.to(tl.float32)
    _store(factor * tl.sum(total, axis=1), out + i, i < pairs, ADD)


@triton.jit
def _load_and_compare(dense, bound, columns, BLOCK: tl.constexpr):
    """Flat indices of this program's BLOCK entries, their values in fp32, and which are above their column's bound."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    index = tl.program_id(0).to(tl.int64) * columns + column
    value = tl.load(dense + index, mask=column < columns, other=0.0).to(tl.float32)
    limit = tl.load(bound + column, mask=column < columns, other=float("inf")).to(tl.float32)
    return index, value, value > limit


@triton.jit
def count_above(dense, bound, counts, columns, BLOCK: tl.constexpr):
    """Number of entries above their column's bound in every part of the matrix, BLOCK columns of one row."""
    _, _, above = _load_and_compare(dense, bound, columns, BLOCK)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(counts + program, tl.sum(above.to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["offset", "capacity"])
def write_above(dense, bound, ends, indices, values, offset, capacity, columns, BLOCK: tl.constexpr):
    """Flat indices plus `offset`, and values, of the entries that `count_above` counted.

    `ends` is where each part's entries end in the result. Entries beyond its capacity are dropped.
    """
    index, value, above = _load_and_compare(dense, bound, columns, BLOCK)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    is_above = above.to(tl.int32)
    slot = tl.load(ends + program) - tl.sum(is_above, axis=0) + tl.cumsum(is_above, axis=0) - 1
    fits = above & (slot < capacity)
    tl.store(indices + slot, index + offset, mask=fits)
    tl.store(values + slot, value, mask=fits)
