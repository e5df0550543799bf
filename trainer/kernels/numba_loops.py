"""The compiled (numba) loops that `cpu.py` calls: sums and products over active entries.

Each loop handles the indices from `first` up to `stop` and writes no other results, so that threads can split the
range. Sums run in a fixed order, so that results do not depend on the number of threads.
"""

import numpy as np
from numba import njit

OPTIONS = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
"""LLVM may reorder sums to vectorise them; NaN and infinity keep their meaning."""


def compiled(loop):
    """Decorator: compiles a loop at its first call and caches it on disk where a cache folder is writable."""
    try:
        return njit(cache=True, **OPTIONS)(loop)
    except RuntimeError:  # neither this folder nor the user's cache folder is writable
        return njit(**OPTIONS)(loop)


MAX_LEVEL = np.float32(126.5)
"""Largest level before rounding; stochastic rounding and its error stay below 128, which does not fit int8."""
MIN_MAGNITUDE = np.float32(1e-30)
"""Avoids a division by zero for a vector of zeros."""
STRIDE = 32
"""Entries compared at a time; a block in which none is above its bound is skipped."""


@compiled
def add_to_rows(first, stop, offsets, row, value, vectors, factor, out):
    """out[row[i]] += factor * value[i] * vectors[f] for i from offsets[f] up to offsets[f + 1]; only rows of the range.

    Feature order reads each vector from memory once; row order would read it again for every row that uses it.
    """
    width = vectors.shape[1]
    for f in range(len(offsets) - 1):
        vector = vectors[f]
        for i in range(offsets[f], offsets[f + 1]):
            if first <= row[i] < stop:
                total, weight = out[row[i]], factor * value[i]
                for c in range(width):
                    total[c] += weight * vector[c]


@compiled
def weighted_sums(first, stop, offsets, row, value, vectors, factor, out):
    """out[f] = factor * sum of value[i] * vectors[row[i]] for i from offsets[f] up to offsets[f + 1]."""
    width = vectors.shape[1]
    for f in range(first, stop):
        total, i, end = out[f], offsets[f], offsets[f + 1]
        total[:] = 0
        while i + 4 <= end:  # four at a time: reads and writes `total` a quarter as often
            w0, w1, w2, w3 = factor * value[i], factor * value[i + 1], factor * value[i + 2], factor * value[i + 3]
            v0, v1, v2, v3 = vectors[row[i]], vectors[row[i + 1]], vectors[row[i + 2]], vectors[row[i + 3]]
            for c in range(width):
                total[c] += w0 * v0[c] + w1 * v1[c] + w2 * v2[c] + w3 * v3[c]
            i += 4
        while i < end:
            w0, v0 = factor * value[i], vectors[row[i]]
            for c in range(width):
                total[c] += w0 * v0[c]
            i += 1


@compiled
def inner_products(first, stop, offsets, row, left, right, factor, out):
    """out[i] += factor * left[row[i]] . right[f] for i from offsets[f] up to offsets[f + 1]."""
    width = right.shape[1]
    for f in range(first, stop):
        vector, i, end = right[f], offsets[f], offsets[f + 1]
        while i + 4 <= end:  # four at a time: independent sums hide the latency of an addition
            v0, v1, v2, v3 = left[row[i]], left[row[i + 1]], left[row[i + 2]], left[row[i + 3]]
            s0 = s1 = s2 = s3 = np.float32(0)
            for c in range(width):
                s0 += v0[c] * vector[c]
                s1 += v1[c] * vector[c]
                s2 += v2[c] * vector[c]
                s3 += v3[c] * vector[c]
            out[i] += factor * s0
            out[i + 1] += factor * s1
            out[i + 2] += factor * s2
            out[i + 3] += factor * s3
            i += 4
        while i < end:
            v0, s0 = left[row[i]], np.float32(0)
            for c in range(width):
                s0 += v0[c] * vector[c]
            out[i] += factor * s0
            i += 1


@compiled
def sparse_products(first, stop, left, right, out):
    """Add the product of two CSR matrices, each (row offsets, columns, values), to the dense out."""
    left_offsets, left_column, left_value = left
    offsets, column, value = right
    for f in range(first, stop):
        total = out[f]
        for i in range(left_offsets[f], left_offsets[f + 1]):
            factor, r = left_value[i], left_column[i]
            for j in range(offsets[r], offsets[r + 1]):
                total[column[j]] += factor * value[j]


@compiled
def sums(first, stop, offsets, value, out):
    """out[f] = sum of value[i] for i from offsets[f] up to offsets[f + 1]."""
    for f in range(first, stop):
        total = np.float32(0)
        for i in range(offsets[f], offsets[f + 1]):
            total += value[i]
        out[f] = total


@compiled
def find_above(first, stop, values, bound, index, bits):
    """Flat indices, in order, of entries above their column's bound, and their values as fp32 bits.

    Values and bounds are bf16 bits. Returns the number of entries; those that do not fit `index` are counted only.
    """
    width, found = values.shape[1], 0
    for r in range(first, stop):
        row = values[r]
        for begin in range(0, width, STRIDE):
            part, limit = row[begin : begin + STRIDE], bound[begin : begin + STRIDE]
            count = 0
            for c in range(len(part)):
                count += part[c] > limit[c]
            if count == 0:
                continue
            if found + count > len(index):
                found += count
                continue
            for c in range(len(part)):
                if part[c] > limit[c]:
                    index[found] = r * width + begin + c
                    bits[found] = np.int32(part[c]) << 16
                    found += 1
    return found


@compiled
def counting_sort(keys, order, offsets):
    """Stable argsort of the keys, and the offsets at which each key begins in it."""
    for key in keys:
        offsets[key + 1] += 1
    for key in range(1, len(offsets)):
        offsets[key] += offsets[key - 1]
    slot = offsets[:-1].copy()
    for i in range(len(keys)):
        order[slot[keys[i]]] = i
        slot[keys[i]] += 1


@compiled
def pack(first, stop, parts, balance, dither, flip, packed, terms):
    """Quantise vectors to int8 with stochastic rounding, four levels to a word: packed [blocks, depth, block].

    A vector is the concatenation of its `parts`. Times `balance`, it is divided by its step, so that its largest
    coordinate becomes MAX_LEVEL, and rounded by floor(x + dither), which is unbiased. Every word is XORed with `flip`.
    terms [3, vectors]: the step; the sum of squared levels, each rounded away from zero; and the sum of levels.
    """
    depth, block = packed.shape[1:]
    scaled, levels = np.zeros(4 * depth, np.float32), np.zeros((block, 4 * depth), np.int8)
    bits, words = scaled.view(np.int32), levels.view(np.int32)
    for b in range(first, stop):
        count = min(block, terms.shape[1] - b * block)
        for i in range(count):
            v, begin, largest = b * block + i, 0, np.int32(0)
            for part in parts:
                vector = part[v]
                weight = balance[begin : begin + len(vector)]
                target = scaled[begin : begin + len(vector)]
                for c in range(len(vector)):
                    target[c] = vector[c] * weight[c]
                begin += len(vector)
            for c in range(begin):  # bits of non-negative numbers compare like the numbers
                largest = max(largest, bits[c] & np.int32(0x7FFFFFFF))
            levels_per_one = MAX_LEVEL / max(np.int32(largest).view(np.float32), MIN_MAGNITUDE)
            offsets, level = dither[v % (len(dither) - begin) :], levels[i]
            squares, total = np.float32(0), np.int32(0)
            for c in range(begin):
                exact = scaled[c] * levels_per_one
                rounded = np.int32(np.floor(exact + offsets[c]))
                outward = np.ceil(abs(exact))
                squares += outward * outward
                total += rounded
                level[c] = rounded
            terms[0, v], terms[1, v], terms[2, v] = np.float32(1) / levels_per_one, squares, total
        for k in range(depth):
            target_words = packed[b, k]
            for i in range(count):
                target_words[i] = words[i, k] ^ flip


@compiled
def list_candidates(first, stop, candidates, columns, begin, row):
    """Rows with a candidate in each column of panels first to stop, ascending, at begin[column] to begin[column + 1].

    candidates [panels, rows] has a bit for each of a panel's `columns`. Returns the number of candidates; panels that
    do not fit `row` any more are counted, but not listed.
    """
    slot, listed = np.zeros(columns, np.int64), 0
    for p in range(first, stop):
        words, at = candidates[p], (p - first) * columns
        slot[:] = 0
        for word in words:
            if word:
                for c in range(columns):
                    slot[c] += (word >> np.uint32(c)) & np.uint32(1)
        for c in range(columns):
            begin[at + c + 1] = begin[at + c] + slot[c]
            slot[c] = begin[at + c]
        listed = begin[at + columns]
        if listed > len(row):
            continue
        for r in range(len(words)):
            word, c = words[r], 0
            while word:
                if word & np.uint32(1):
                    row[slot[c]] = r
                    slot[c] += 1
                word >>= np.uint32(1)
                c += 1
    return listed


@compiled
def keep_above(begin, row, value, bias, bound, width, flat):
    """Filter entries, those of a column from begin[column] up to begin[column + 1], by value + bias > bound.

    Compacts `value` in place, bias added, and writes flat indices into a matrix of `width` columns to `flat`. Bias and
    bound are by column. Returns the number of entries kept.
    """
    kept = 0
    for c in range(len(bound)):
        for i in range(begin[c], begin[c + 1]):
            x = value[i] + bias[c]
            if x > bound[c]:
                flat[kept], value[kept] = row[i] * width + c, x
                kept += 1
    return kept
