"""Tile: the innermost loop of a product in eight bits, in the instruction that processors have for it.

`vpdpbusd` (VNNI) multiplies four unsigned with four signed bytes and adds them to a 32-bit number, in every lane of
a register. LLVM, numba's compiler, knows it as an intrinsic but does not find it by itself in a plain loop.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from trainer.kernels.numba_loops import OPTIONS

VECTORS = 2
"""Vectors of columns in a tile."""

_BYTE, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()


def searching(lanes: int, rows: int) -> Any:
    """The loop that searches panels of `VECTORS * lanes` columns for hits, in tiles of so many rows.

    `lanes` is how many 32-bit numbers a register holds; a tile takes `rows * VECTORS` registers of those there are.
    """
    tile = _tile(lanes, rows)

    # Not kept for the next process: numba cannot tell one intrinsic from another.
    @njit(**OPTIONS)
    def search(first, stop, left, right, row_terms, column_terms, hits, together):
        """For panels of the range, hits[panel, row]: the columns, a bit each, whose product is above its bound.

        left [blocks, depth, rows] holds four signed bytes each, right [panels, depth, columns] four unsigned ones. The
        bound is row_terms[block, 0] + column_terms[panel, 0] * row_terms[block, 1] - column_terms[panel, 1]. So many
        blocks of rows meet all panels before the next ones come: as many as stay in the cache.
        """
        blocks, depth = left.shape[0], left.shape[1]
        for begin in range(0, blocks, together):
            for p in range(first, stop):
                beside, terms = right[p].ctypes.data, column_terms[p].ctypes.data
                for b in range(begin, min(begin + together, blocks)):
                    found = hits[p, b * rows :].ctypes.data
                    tile(left[b].ctypes.data, beside, depth, row_terms[b].ctypes.data, terms, found)

    return search


def _tile(lanes: int, rows: int) -> Any:
    """What searches one tile, given addresses: (left, right, depth, row terms, column terms, hits)."""

    @intrinsic
    def tile(context, left, right, depth, row_terms, column_terms, hits):
        def generate(context, builder, signature, arguments):
            left, right, depth, *terms, hits = arguments
            sums = _products(builder, lanes, rows, left, right, depth)
            _compare(builder, sums, terms, hits)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return tile


def _products(b: Any, lanes: int, rows: int, left: Any, right: Any, depth: Any) -> list[list[Any]]:
    """Sums of a tile, a vector for each row and each of its vectors of columns; all stay in registers."""
    vector, packed = ir.VectorType(_INT, lanes), ir.VectorType(_BYTE, 4 * lanes)
    kind = ir.FunctionType(vector, [vector, packed, packed])
    dot = cgutils.get_or_insert_function(b.module, kind, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}")
    left, right = b.inttoptr(left, _INT.as_pointer()), b.inttoptr(right, packed.as_pointer())
    before, loop, after = b.block, b.append_basic_block("depth"), b.append_basic_block("summed")
    b.branch(loop)
    b.position_at_end(loop)
    k = b.phi(_LONG)
    sums = [[b.phi(vector) for _ in range(VECTORS)] for _ in range(rows)]
    columns = [b.load(_at(b, right, k, VECTORS, n), align=64) for n in range(VECTORS)]
    added = []
    for m in range(rows):
        spread = b.bitcast(_spread(b, b.load(_at(b, left, k, rows, m), align=4), vector), packed)
        added.append([b.call(dot, [sums[m][n], columns[n], spread]) for n in range(VECTORS)])
    following = b.add(k, _LONG(1))
    b.cbranch(b.icmp_signed("<", following, depth), loop, after)
    for phi, start, further in ((k, _LONG(0), following), *_triples(sums, vector([0] * lanes), added)):
        phi.add_incoming(start, before)
        phi.add_incoming(further, loop)
    b.position_at_end(after)
    return added


def _triples(sums: list[list[Any]], start: Any, added: list[list[Any]]) -> list[tuple[Any, Any, Any]]:
    return [(sums[m][n], start, added[m][n]) for m in range(len(sums)) for n in range(VECTORS)]


def _compare(b: Any, sums: list[list[Any]], terms: list[Any], hits: Any) -> None:
    """Write for every row of a tile which of its sums exceed their bound; what is not a number counts as a hit."""
    rows, lanes = len(sums), sums[0][0].type.count
    vector = ir.VectorType(_FLOAT, lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    multiply_add = cgutils.get_or_insert_function(b.module, kind, f"llvm.fma.v{lanes}f32")
    of_row, of_column = b.inttoptr(terms[0], _FLOAT.as_pointer()), b.inttoptr(terms[1], vector.as_pointer())
    hits = b.inttoptr(hits, _INT.as_pointer())
    factor, less = (
        [b.load(b.gep(of_column, [_LONG(i * VECTORS + n)]), align=4) for n in range(VECTORS)] for i in range(2)
    )
    for m in range(rows):
        start, scale = (_spread(b, b.load(b.gep(of_row, [_LONG(i * rows + m)])), vector) for i in range(2))
        word = _INT(0)
        for n in range(VECTORS):
            bound = b.fsub(b.call(multiply_add, [factor[n], scale, start]), less[n])
            above = b.fcmp_unordered(">", b.sitofp(sums[m][n], vector), bound)
            bits = b.zext(b.bitcast(above, ir.IntType(lanes)), _INT)
            word = b.or_(word, b.shl(bits, _INT(n * lanes)))
        b.store(word, b.gep(hits, [_LONG(m)]))


def _at(b: Any, array: Any, k: Any, stride: int, offset: int) -> Any:
    """Address of array[k * stride + offset]."""
    return b.gep(array, [b.add(b.mul(k, _LONG(stride)), _LONG(offset))])


def _spread(b: Any, number: Any, vector: Any) -> Any:
    """A vector of one number."""
    nothing, zeros = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_INT, vector.count), None)
    return b.shuffle_vector(b.insert_element(nothing, number, _INT(0)), nothing, zeros)
