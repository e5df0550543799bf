"""Kernels that Triton compiles for a GPU: sums and products over active entries, and the search for them.

Every program writes places of its own, and sums in an order that depends on the numbers' places alone: the same inputs
give the same bits again. Matrices are contiguous; sums are in fp32 whatever goes in. The compiler is told nothing of
numbers that change from call to call, or some of them would set it to work again.
"""

import triton
import triton.language as tl


@triton.jit
def _put(numbers, target, wanted, ADD: tl.constexpr):
    """Write numbers where they are wanted, or add them to what is there."""
    if ADD:
        numbers += tl.load(target, mask=wanted, other=0.0).to(tl.float32)
    tl.store(target, numbers.to(target.dtype.element_ty), mask=wanted)


@triton.jit
def weighted_sums(
    begin,
    end,
    into,
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
    """out[into[p]] = factor * sum of weight[i] * vectors[index[i]] for i from begin[p] up to end[p], or adds it to out.

    One program for every p and COLUMNS columns; p is left out where into[p] is negative.
    """
    part = tl.program_id(0)
    place = tl.load(into + part)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if place >= 0:
        first, stop = tl.load(begin + part), tl.load(end + part)
        total = tl.zeros([COLUMNS], tl.float32)
        for start in range(first, stop, PAIRS):
            i = start + tl.arange(0, PAIRS)
            source = tl.load(index + i, mask=i < stop, other=0)
            share = tl.load(weight + i, mask=i < stop, other=0.0).to(tl.float32)
            wanted = (i < stop)[:, None] & (column < width)[None, :]
            vector = tl.load(vectors + source[:, None] * width + column[None, :], mask=wanted, other=0.0)
            total += tl.sum(share[:, None] * vector.to(tl.float32), axis=0)
        _put(total * factor, out + place * width + column, column < width, ADD)


@triton.jit
def pull_and_sums(
    begin,
    end,
    into,
    run,
    row,
    value,
    beside,
    weight,
    pull,
    out,
    factor,
    width,
    ADD: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Both things that are made of a decoder's errors, which are read once.

    pull[i] += factor * beside[row[i]] . weight[run[p]] for i from begin[p] up to end[p], and
    out[into[p]] = factor * sum of value[i] * beside[row[i]], or adds it to out. One program for every p, of at least
    as many columns as there are; p is left out where into[p] is negative.
    """
    part = tl.program_id(0)
    place = tl.load(into + part)
    column = tl.arange(0, COLUMNS)
    if place >= 0:
        first, stop = tl.load(begin + part), tl.load(end + part)
        vector = tl.load(weight + tl.load(run + part) * width + column, mask=column < width, other=0.0).to(tl.float32)
        total = tl.zeros([COLUMNS], tl.float32)
        for start in range(first, stop, PAIRS):
            i = start + tl.arange(0, PAIRS)
            source = tl.load(row + i, mask=i < stop, other=0)
            share = tl.load(value + i, mask=i < stop, other=0.0)
            wanted = (i < stop)[:, None] & (column < width)[None, :]
            error = tl.load(beside + source[:, None] * width + column[None, :], mask=wanted, other=0.0).to(tl.float32)
            before = tl.load(pull + i, mask=i < stop, other=0.0)
            tl.store(pull + i, before + factor * tl.sum(error * vector[None, :], axis=1), mask=i < stop)
            total += tl.sum(share[:, None] * error, axis=0)
        _put(total * factor, out + place * width + column, column < width, ADD)


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
    """out[i] = factor * left[row[i]] . right[feature[i]] for every pair i, or adds it to out; PAIRS to a program."""
    i = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    one = tl.load(row + i, mask=i < pairs, other=0)
    other = tl.load(feature + i, mask=i < pairs, other=0)
    total = tl.zeros([PAIRS, COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        wanted = (i < pairs)[:, None] & (column < width)[None, :]
        x = tl.load(left + one[:, None] * width + column[None, :], mask=wanted, other=0.0)
        y = tl.load(right + other[:, None] * width + column[None, :], mask=wanted, other=0.0)
        total += x.to(tl.float32) * y.to(tl.float32)
    _put(factor * tl.sum(total, axis=1), out + i, i < pairs, ADD)


@triton.jit
def _looked_at(dense, bound, columns, BLOCK: tl.constexpr):
    """Where this program's part of the matrix lies in it, its values as fp32, and which are above their bound."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.program_id(0).to(tl.int64) * columns + column
    value = tl.load(dense + place, mask=column < columns, other=0.0).to(tl.float32)
    least = tl.load(bound + column, mask=column < columns, other=float("inf")).to(tl.float32)
    return place, value, value > least


@triton.jit
def count_above(dense, bound, counts, columns, BLOCK: tl.constexpr):
    """How many entries of every part of the matrix, BLOCK columns of one row, are above the bound of their column."""
    _, _, above = _looked_at(dense, bound, columns, BLOCK)
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(counts + part, tl.sum(above.to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["before", "room"])
def write_above(dense, bound, ends, places, values, before, room, columns, BLOCK: tl.constexpr):
    """Flat indices plus `before`, and values, of the entries that were counted; `ends` is where each part's end.

    What lies beyond the room is dropped.
    """
    place, value, above = _looked_at(dense, bound, columns, BLOCK)
    part = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    found = above.to(tl.int32)
    at = tl.load(ends + part) - tl.sum(found, axis=0) + tl.cumsum(found, axis=0) - 1
    fits = above & (at < room)
    tl.store(places + at, place + before, mask=fits)
    tl.store(values + at, value, mask=fits)
