"""Sparse products and the search for entries above a bound on a GPU, by Triton kernels.

Triton compiles each kernel on first use. `usable` says whether the kernels accept given tensors; callers use torch
where they do not, and everywhere without Triton. Only `EntrySearch.result` waits for the device, once, for the number
of entries found.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.kernels.cpu import WeightBlock
from trainer.kernels.readback import ScalarReadback

AVAILABLE = find_spec("triton") is not None
"""PyTorch for CUDA on Linux depends on Triton, so it is installed there."""
DEVICE = "cuda"
"""Device type on which the kernels run; tests set it to the CPU and interpret them."""
DTYPES = (torch.float32, torch.bfloat16)

MAX_SEGMENT = 1024
"""Largest number of pairs that one program sums. Longer segments are split, so that a feature active on every row does
not delay the others."""
MAX_WIDTH = 2**14
"""Columns of the widest vector that fits one program."""
ENTRIES_PER_SLOT = 32
"""Entries of the matrix per slot of the result buffer; if more are above the bound, the search runs again."""
SUM_PAIRS, SUM_COLUMNS = 8, 512
"""Block of `weighted_sums`: pairs and columns at a time. A step has about rows * k / features pairs per feature."""
WHOLE_VECTOR_PAIRS = 2
"""Pairs at a time in `decoder_gradients`, whose blocks hold all columns."""
PRODUCT_PAIRS, PRODUCT_COLUMNS = 16, 128
"""Block of `inner_products`: pairs and columns at a time."""
SEARCH_COLUMNS = 1024
"""Columns of one row that a program searches."""
ELEMENTS_PER_WARP = 1024
"""Elements of a block per warp: 32 for each of its 32 threads."""

_log = logging.getLogger(__name__)


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can run on these value tensors: fp32 or bf16, on a GPU, contiguous."""
    suitable = AVAILABLE and all(x.device.type == DEVICE and x.dtype in DTYPES and x.is_contiguous() for x in tensors)
    return suitable and _works()


@cache
def _works() -> bool:
    """Whether this machine can compile and launch a kernel; Triton needs a C compiler."""
    try:
        offsets, index = torch.tensor([0, 1], device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
        segments = SegmentIndex(offsets, index, 1)
        one = torch.ones(1, 1, device=DEVICE)
        weighted_sums(segments, one[0], one, one.clone())
    except Exception as error:  # noqa: BLE001 - compilers, linkers and drivers raise anything; torch takes over
        _log.warning(
            "Triton's kernels do not run here (%s), so training uses torch's own operations. Triton needs a C "
            "compiler, such as gcc, and the Python headers.",
            next(iter(str(error).splitlines()), type(error).__name__),
        )
        return False
    return True


class ProgramRanges(NamedTuple):
    """Range of pairs that each program sums, and where the sum goes; all int64 [programs]."""

    begin: Tensor
    """First pair."""
    end: Tensor
    """One past the last pair."""
    out_row: Tensor
    """Row of the result; negative for a program that does nothing."""
    segment: Tensor
    """Segment to which the pairs belong."""


class SegmentIndex:
    """Pairs sorted by row or by feature: segment j is the pairs from offsets[j] up to offsets[j + 1].

    Segments longer than MAX_SEGMENT are split into pieces, which are summed on their own and then merged.
    """

    def __init__(self, offsets: Tensor, index: Tensor, max_length: int) -> None:
        """Offsets int64 [segments + 1], and the vector of each pair as index int64 [N].

        No segment has more than `max_length` pairs.
        """
        self.index, self.count = index, len(offsets) - 1
        begin, end, segment = offsets[:-1], offsets[1:], torch.arange(self.count, device=offsets.device)
        # A segment longer than MAX_SEGMENT has fewer than 2 * length / MAX_SEGMENT pieces: an upper bound on their
        # number that needs no readback.
        self.piece_count = 2 * len(index) // MAX_SEGMENT if min(max_length, len(index)) > MAX_SEGMENT else 0
        self.unsplit = ProgramRanges(begin, end, segment, segment)
        if not self.piece_count:
            return
        length = end - begin
        is_long = length > MAX_SEGMENT
        counts = torch.where(is_long, (length + MAX_SEGMENT - 1) // MAX_SEGMENT, 0)
        stop = counts.cumsum(0)
        self.unsplit = ProgramRanges(begin, end, torch.where(is_long, -1, segment), segment)
        self.merges = ProgramRanges(stop - counts, stop, torch.where(is_long, segment, -1), segment)
        piece = torch.arange(self.piece_count, device=offsets.device)
        owner = torch.searchsorted(stop, piece, right=True)
        used, owner = owner < self.count, owner.clamp_max(self.count - 1)
        first = begin[owner] + (piece - (stop - counts)[owner]) * MAX_SEGMENT
        last = torch.minimum(first + MAX_SEGMENT, end[owner])
        self.pieces = ProgramRanges(first, last, torch.where(used, piece, -1), owner)


def weighted_sums(
    segments: SegmentIndex, value: Tensor, vectors: Tensor, out: Tensor, *, factor: float = 1.0, add: bool = False
) -> Tensor:
    """Write to out [segments, W], or add, each segment's sum of vectors [.., W] weighted by value [N] and factor."""
    _launch_sums(segments.unsplit, segments.index, value, vectors, out, factor, add=add)
    if segments.piece_count:
        partial = vectors.new_empty(segments.piece_count, vectors.shape[1], dtype=torch.float32)
        _launch_sums(segments.pieces, segments.index, value, vectors, partial, 1.0, add=False)
        _merge_pieces(segments, partial, out, factor, add=add)
    return out


def _merge_pieces(segments: SegmentIndex, partial: Tensor, out: Tensor, factor: float, *, add: bool) -> None:
    """Sums of the split segments, from the sums of their pieces [pieces, W]."""
    index = torch.arange(segments.piece_count, device=out.device)
    ones = torch.ones_like(index, dtype=torch.float32)
    _launch_sums(segments.merges, index, ones, partial, out, factor, add=add)


def _launch_sums(  # noqa: PLR0917 - the kernel's own parameters
    ranges: ProgramRanges, index: Tensor, value: Tensor, vectors: Tensor, out: Tensor, factor: float, *, add: bool
) -> None:
    width = vectors.shape[1]
    columns = _columns(width)
    warps = max(1, SUM_PAIRS * columns // ELEMENTS_PER_WARP)
    _launch(
        "weighted_sums",
        (len(ranges.out_row), -(-width // columns)),
        (*ranges[:3], index, value, vectors, out, factor, width),
        {"ADD": add, "PAIRS": SUM_PAIRS, "COLUMNS": columns, "num_warps": warps},
    )


def _columns(width: int) -> int:
    """Columns per program of `weighted_sums`: as many as possible with at most an eighth of padding."""
    columns = min(SUM_COLUMNS, _block_size(width))
    while columns > 64 and -(-width // columns) * columns > 1.125 * width:
        columns //= 2
    return columns


def _block_size(count: int) -> int:
    """The next power of two, as Triton's blocks require, and at least 16."""
    return max(16, 1 << (count - 1).bit_length())


def inner_products(
    row: Tensor, feature: Tensor, left: Tensor, right: Tensor, out: Tensor, *, factor: float = 1.0, add: bool = False
) -> Tensor:
    """Write to out fp32 [N], or add, the inner products of left [R, W] and right [F, W] at row, feature int64 [N]."""
    pairs, width = len(row), left.shape[1]
    _launch(
        "inner_products",
        (-(-pairs // PRODUCT_PAIRS),),
        (row, feature, left, right, out, factor, pairs, width),
        {"ADD": add, "PAIRS": PRODUCT_PAIRS, "COLUMNS": PRODUCT_COLUMNS, "num_warps": 4},
    )
    return out


def write_gradients(
    segments: SegmentIndex,
    value: Tensor,
    decoders: Sequence[WeightBlock],
    encoders: Sequence[WeightBlock],
    bias: Tensor,
) -> None:
    """Gradients of a group's weights and bias [F] (see `trainer.training.gradients`).

    Segments are the features, their index the row of every pair; value fp32 [N] is in the same order. Decoders that
    share a gradient tensor (a tied decoder) are summed into it. Errors have at most MAX_WIDTH columns.
    """
    pre_gradient, written = torch.zeros_like(value), set()
    for block in decoders:
        _decoder_gradients(segments, value, block, pre_gradient, add=block.gradient.data_ptr() in written)
        written.add(block.gradient.data_ptr())
    for block in encoders:
        weighted_sums(segments, pre_gradient, block.vectors, block.gradient, factor=block.factor)
    ones = torch.ones(len(encoders[0].vectors), 1, device=bias.device)
    weighted_sums(segments, pre_gradient, ones, bias[:, None])


def _decoder_gradients(
    segments: SegmentIndex, value: Tensor, block: WeightBlock, pre_gradient: Tensor, *, add: bool
) -> None:
    """Add a decoder's term to the gradient of every pre-activation [N]; write the decoder's gradient or add to it."""
    width = block.vectors.shape[1]
    columns = _block_size(width)
    pairs = min(WHOLE_VECTOR_PAIRS, MAX_WIDTH // columns)

    def launch(ranges: ProgramRanges, out: Tensor, *, add: bool) -> None:
        _launch(
            "decoder_gradients",
            (len(ranges.out_row),),
            (*ranges, segments.index, value, block.vectors, block.weight, pre_gradient, out, block.factor, width),
            {"ADD": add, "PAIRS": pairs, "COLUMNS": columns, "num_warps": max(1, pairs * columns // ELEMENTS_PER_WARP)},
        )

    launch(segments.unsplit, block.gradient, add=add)
    if segments.piece_count:
        partial = value.new_empty(segments.piece_count, width)
        launch(segments.pieces, partial, add=False)
        _merge_pieces(segments, partial, block.gradient, 1.0, add=add)


class EntrySearch:
    """Asynchronous search for the entries above a bound, in a matrix that comes in blocks of rows."""

    def __init__(self, blocks: Callable[[], Iterator[Tensor]], bound: Tensor, entries: int) -> None:
        """Starts the search; `entries` is the size of the whole matrix, bound [F].

        Each call of `blocks` gives all blocks [rows, F] in order; a block may reuse the memory of the one before.
        """
        self._blocks, self._bound = blocks, bound
        self._index, self._value, total = self._run(entries // ENTRIES_PER_SLOT + 1)
        self._total = ScalarReadback(total)

    def result(self) -> tuple[Tensor, Tensor]:
        """Flat indices in order, int64 [N], and values, fp32 [N]; waits for the device to know N."""
        total = int(self._total.item())
        if total > len(self._index):
            self._index, self._value, _ = self._run(total)
        return self._index[:total], self._value[:total]

    def _run(self, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices and values of the first entries up to the capacity, and the number of all entries above [1]."""
        device, offset = self._bound.device, 0
        index = torch.empty(capacity, dtype=torch.int64, device=device)
        value = torch.empty(capacity, dtype=torch.float32, device=device)
        total = torch.zeros(1, dtype=torch.int64, device=device)
        for dense in self._blocks():
            rows, columns = dense.shape
            block = min(SEARCH_COLUMNS, _block_size(columns))
            grid = (rows, -(-columns // block))
            counts = torch.empty(grid, dtype=torch.int32, device=device)
            _launch("count_above", grid, (dense, self._bound, counts, columns), {"BLOCK": block})
            ends = total + counts.flatten().cumsum(0)
            arguments = (dense, self._bound, ends, index, value, offset, capacity, columns)
            _launch("write_above", grid, arguments, {"BLOCK": block})
            total, offset = ends[-1:], offset + dense.numel()
        return index, value, total


def _launch(kernel: str, grid: tuple[int, ...], arguments: tuple[Any, ...], settings: dict[str, Any]) -> None:
    """Launch a kernel on the device of its tensors, unless the grid is empty."""
    if all(grid):
        on_device = torch.cuda.device(arguments[0].device) if arguments[0].is_cuda else contextlib.nullcontext()
        with on_device:
            getattr(_kernels(), kernel)[grid](*arguments, **settings)


@cache
def _kernels() -> Any:
    """Module of the kernels, imported on first use because Triton takes a while to import."""
    return import_module("trainer.kernels.triton_kernels")
