"""Emits the inner loop of the int8 product as LLVM IR, around the VNNI instruction vpdpbusd.

`vpdpbusd` multiplies four unsigned bytes with four signed ones and adds the products to a 32-bit sum, in every lane of
a register. LLVM, which numba compiles with, has an intrinsic for it, but does not recognise the pattern in a plain
loop.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from trainer.kernels.numba_loops import OPTIONS

COLUMN_VECTORS = 2
"""Vectors of columns in a tile."""

_INT, _LONG, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()


def search_kernel(lanes: int, rows: int) -> Any:
    """Loop that searches panels of `COLUMN_VECTORS * lanes` columns for candidates, in tiles of `rows` rows.

    `lanes` is how many 32-bit numbers a register holds; the sums of a tile take `rows * COLUMN_VECTORS` registers.
    Numba compiles it at the first call.
    """
    search_tile = _tile_intrinsic(lanes, rows)

    # Not cached on disk: numba's key does not tell one intrinsic from another.
    @njit(**OPTIONS)
    def search(first, stop, left, right, row_terms, column_terms, candidates, together):
        """For panels first to stop, candidates[panel, row]: a bit for each column whose sum is above its bound.

        left [blocks, depth, rows] holds words of four signed bytes, right [panels, depth, columns] of four unsigned
        ones. The bound of a sum is row_terms[block, 0] + column_terms[panel, 0] * row_terms[block, 1] -
        column_terms[panel, 1]. All panels are searched with `together` blocks of rows, which fit the cache, before
        the next blocks.
        """
        blocks, depth = left.shape[0], left.shape[1]
        for begin in range(0, blocks, together):
            for p in range(first, stop):
                columns, terms = right[p].ctypes.data, column_terms[p].ctypes.data
                for b in range(begin, min(begin + together, blocks)):
                    words = candidates[p, b * rows :].ctypes.data
                    search_tile(left[b].ctypes.data, columns, depth, row_terms[b].ctypes.data, terms, words)

    return search


def _tile_intrinsic(lanes: int, rows: int) -> Any:
    """Intrinsic that searches one tile, given addresses: (left, right, depth, row terms, column terms, candidates)."""

    @intrinsic
    def search_tile(context, left, right, depth, row_terms, column_terms, candidates):
        def generate(context, builder, signature, arguments):
            left, right, depth, *terms, candidates = arguments
            sums = _emit_products(builder, lanes, rows, left, right, depth)
            _emit_comparison(builder, sums, terms, candidates)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return search_tile


def _emit_products(b: Any, lanes: int, rows: int, left: Any, right: Any, depth: Any) -> list[list[Any]]:
    """Sums of a tile, one vector for each row and each of its vectors of columns; all stay in registers."""
    vector = ir.VectorType(_INT, lanes)
    # The factors are vectors of words before LLVM 22 and of bytes from then on (llvm/llvm-project#155194). LLVM 22
    # converts calls of the older form when it parses them, so words suit every version.
    kind = ir.FunctionType(vector, [vector] * 3)
    dot = cgutils.get_or_insert_function(b.module, kind, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}")
    left, right = b.inttoptr(left, _INT.as_pointer()), b.inttoptr(right, vector.as_pointer())
    before, loop, after = b.block, b.append_basic_block("depth"), b.append_basic_block("summed")
    b.branch(loop)
    b.position_at_end(loop)
    k = b.phi(_LONG)
    sums = [[b.phi(vector) for _ in range(COLUMN_VECTORS)] for _ in range(rows)]
    columns = [b.load(_element(b, right, k, COLUMN_VECTORS, n), align=64) for n in range(COLUMN_VECTORS)]
    added = []
    for m in range(rows):
        word = _broadcast(b, b.load(_element(b, left, k, rows, m), align=4), vector)
        added.append([b.call(dot, [sums[m][n], columns[n], word]) for n in range(COLUMN_VECTORS)])
    following = b.add(k, _LONG(1))
    b.cbranch(b.icmp_signed("<", following, depth), loop, after)
    for phi, start, updated in ((k, _LONG(0), following), *_phi_updates(sums, vector([0] * lanes), added)):
        phi.add_incoming(start, before)
        phi.add_incoming(updated, loop)
    b.position_at_end(after)
    return added


def _phi_updates(sums: list[list[Any]], start: Any, added: list[list[Any]]) -> list[tuple[Any, Any, Any]]:
    """For every sum of a tile its phi node, initial value and value after the iteration."""
    return [(sums[m][n], start, added[m][n]) for m in range(len(sums)) for n in range(COLUMN_VECTORS)]


def _emit_comparison(b: Any, sums: list[list[Any]], terms: list[Any], candidates: Any) -> None:
    """Write for every row of a tile which of its sums exceed their bounds; a bound that is NaN counts as exceeded."""
    rows, lanes = len(sums), sums[0][0].type.count
    vector = ir.VectorType(_FLOAT, lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    multiply_add = cgutils.get_or_insert_function(b.module, kind, f"llvm.fma.v{lanes}f32")
    of_row, of_column = b.inttoptr(terms[0], _FLOAT.as_pointer()), b.inttoptr(terms[1], vector.as_pointer())
    candidates = b.inttoptr(candidates, _INT.as_pointer())
    factor, less = (
        [b.load(b.gep(of_column, [_LONG(i * COLUMN_VECTORS + n)]), align=4) for n in range(COLUMN_VECTORS)]
        for i in range(2)
    )
    for m in range(rows):
        start, scale = (_broadcast(b, b.load(b.gep(of_row, [_LONG(i * rows + m)])), vector) for i in range(2))
        word = _INT(0)
        for n in range(COLUMN_VECTORS):
            bound = b.fsub(b.call(multiply_add, [factor[n], scale, start]), less[n])
            above = b.fcmp_unordered(">", b.sitofp(sums[m][n], vector), bound)
            bits = b.zext(b.bitcast(above, ir.IntType(lanes)), _INT)
            word = b.or_(word, b.shl(bits, _INT(n * lanes)))
        b.store(word, b.gep(candidates, [_LONG(m)]))


def _element(b: Any, array: Any, k: Any, stride: int, offset: int) -> Any:
    """Address of array[k * stride + offset]."""
    return b.gep(array, [b.add(b.mul(k, _LONG(stride)), _LONG(offset))])


def _broadcast(b: Any, number: Any, vector: Any) -> Any:
    """Vector with the same number in every lane."""
    undefined, zeros = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_INT, vector.count), None)
    return b.shuffle_vector(b.insert_element(undefined, number, _INT(0)), undefined, zeros)
