"""Loops over active entries that numba compiles for the CPU.

Each works on the indices from `first` up to `stop` and writes no result outside them, so that threads can share the
work. Sums run in a fixed order: results do not depend on the number of threads.
"""

import numpy as np
from numba import njit

OPTIONS = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
"""Sums may be reordered as vector instructions do it; NaN and infinity keep their meaning."""


def compiled(loop):
    """A loop that is compiled when it is first called, and kept for the next process where there is a place for it."""
    try:
        return njit(cache=True, **OPTIONS)(loop)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return njit(**OPTIONS)(loop)


LARGEST = np.float32(126.5)
"""Largest level before rounding: neither rounding up nor a sum's error makes 128 of it, for which there is no room."""
TINY = np.float32(1e-30)
STRIDE = 32
"""Entries looked at together when few of them are wanted."""


@compiled
def spread_sums(first, stop, offsets, row, value, vectors, factor, out):
    """out[row[i]] += factor * value[i] * vectors[f] for i from offsets[f] up to offsets[f + 1] and rows of the range.

    Vectors are read once each and in order; sorted by row, each of them would come from memory for every row it is in.
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
        while i + 4 <= end:  # four at a time: the running total is read and written a quarter as often
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
        while i + 4 <= end:  # four at a time: the processor need not wait for one sum to be ready before it goes on
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
    """Add to out, by row, the product of two sparse matrices, each given as offsets of its rows, columns and values."""
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
def find_above(first, stop, values, bound, place, bits):
    """Flat indices, in order, of entries above the bound of their column, and their values as fp32 bits.

    Values are bf16 bits. Returns how many there are; no more are written than there is room for.
    """
    width, found = values.shape[1], 0
    for r in range(first, stop):
        row = values[r]
        for begin in range(0, width, STRIDE):
            part, least = row[begin : begin + STRIDE], bound[begin : begin + STRIDE]
            count = 0
            for c in range(len(part)):
                count += part[c] > least[c]
            if count == 0:
                continue
            if found + count > len(place):
                found += count
                continue
            for c in range(len(part)):
                if part[c] > least[c]:
                    place[found] = r * width + begin + c
                    bits[found] = np.int32(part[c]) << 16
                    found += 1
    return found


@compiled
def counting_sort(keys, order, offsets):
    """Stable order of the keys, and where each key's run begins in it."""
    for key in keys:
        offsets[key + 1] += 1
    for key in range(1, len(offsets)):
        offsets[key] += offsets[key - 1]
    place = offsets[:-1].copy()
    for i in range(len(keys)):
        order[place[keys[i]]] = i
        place[keys[i]] += 1


@compiled
def pack(first, stop, parts, balance, dither, flip, packed, terms):
    """Blocks of vectors, each in several parts side by side, in bytes, four to a word: packed [blocks, depth, block].

    A vector times `balance` is divided by its step, so that the largest becomes LARGEST, and rounded up or down by
    chance, as often up as it is near: on average nothing is added. Bits of `flip` change in every word. terms
    [3, vectors]: the step; the sum of squares, each rounded away from zero; and the sum of what comes out.
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
                room = scaled[begin : begin + len(vector)]
                for c in range(len(vector)):
                    room[c] = vector[c] * weight[c]
                begin += len(vector)
            for c in range(begin):  # numbers without their sign compare as their bits do
                largest = max(largest, bits[c] & np.int32(0x7FFFFFFF))
            levels_per_one = LARGEST / max(np.int32(largest).view(np.float32), TINY)
            chance, level = dither[v % (len(dither) - begin) :], levels[i]
            squares, total = np.float32(0), np.int32(0)
            for c in range(begin):
                exact = scaled[c] * levels_per_one
                rounded = np.int32(np.floor(exact + chance[c]))
                outward = np.ceil(abs(exact))
                squares += outward * outward
                total += rounded
                level[c] = rounded
            terms[0, v], terms[1, v], terms[2, v] = np.float32(1) / levels_per_one, squares, total
        for k in range(depth):
            beside = packed[b, k]
            for i in range(count):
                beside[i] = words[i, k] ^ flip


@compiled
def list_hits(first, stop, hits, columns, begin, row):
    """Rows that each column of some panels hits, in order, from begin[column] on, where it ends the one before.

    hits [panels, rows] has a bit for each of a panel's `columns`. Returns how many hits there are; no more panels are
    listed than there is room for.
    """
    place, listed = np.zeros(columns, np.int64), 0
    for p in range(first, stop):
        words, at = hits[p], (p - first) * columns
        place[:] = 0
        for word in words:
            if word:
                for c in range(columns):
                    place[c] += (word >> np.uint32(c)) & np.uint32(1)
        for c in range(columns):
            begin[at + c + 1] = begin[at + c] + place[c]
            place[c] = begin[at + c]
        listed = begin[at + columns]
        if listed > len(row):
            continue
        for r in range(len(words)):
            word, c = words[r], 0
            while word:
                if word & np.uint32(1):
                    row[place[c]] = r
                    place[c] += 1
                word >>= np.uint32(1)
                c += 1
    return listed


@compiled
def keep_above(begin, row, value, bias, bound, width, flat):
    """Leave of the entries, from begin[column] on for every column, those above its bound once its bias is added.

    Values are moved to the front; flat gets their indices in a matrix of `width` columns, bias and bound [columns].
    Returns how many are left.
    """
    kept = 0
    for c in range(len(bound)):
        for i in range(begin[c], begin[c + 1]):
            x = value[i] + bias[c]
            if x > bound[c]:
                flat[kept], value[kept] = row[i] * width + c, x
                kept += 1
    return kept
