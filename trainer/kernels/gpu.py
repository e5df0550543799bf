"""Fused operations for a GPU, called on tensors: kernels that Triton compiles on first use.

`usable` says whether tensors suit them; callers use torch where they do not, and everywhere when Triton is not there.
Nothing here waits for the device but `Search.found`, once, for how many entries it has found.
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
"""torch brings it along on Linux with CUDA."""
DEVICE = "cuda"
"""Where the kernels run; the tests have them interpreted on the CPU."""
DTYPES = (torch.float32, torch.bfloat16)

LONGEST = 1024
"""Pairs that one program sums; longer runs are cut into pieces, so that a feature of every row holds nobody up."""
WIDEST = 2**14
"""Columns of the widest vector that one program can hold."""
SELDOM = 32
"""Of so many entries about one is above its bound; room for more is made when needed."""
PAIRS, COLUMNS = 8, 512
"""Pairs and columns that a program sums at a time: a step has about rows * k / features pairs for a feature."""
PAIRS_OF_WHOLE_VECTORS = 2
"""Pairs at a time where every one comes with all its columns."""
PAIRS_MULTIPLIED, COLUMNS_MULTIPLIED = 16, 128
"""Pairs and columns of which a program takes the inner products at a time."""
COLUMNS_SEARCHED = 1024
"""Columns of one row in which a program searches."""
PER_WARP = 1024
"""Numbers that 32 threads hold together of a block, 32 each."""

_log = logging.getLogger(__name__)


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can run on these tensors of values: fp32 or bf16 on a GPU, contiguous."""
    suit = AVAILABLE and all(x.device.type == DEVICE and x.dtype in DTYPES and x.is_contiguous() for x in tensors)
    return suit and _works()


@cache
def _works() -> bool:
    """Whether this machine can compile and start a kernel; Triton needs a C compiler to do it."""
    try:
        runs = SegmentIndex(torch.tensor([0, 1], device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE), 1)
        one = torch.ones(1, 1, device=DEVICE)
        weighted_sums(runs, one[0], one, one.clone())
    except Exception as error:  # noqa: BLE001 - whatever a compiler, linker or driver may raise; torch does the same
        _log.warning(
            "Triton's kernels do not run here (%s), so training uses torch's own operations. Triton needs a C "
            "compiler, such as gcc, and the headers of Python.",
            next(iter(str(error).splitlines()), type(error).__name__),
        )
        return False
    return True


class Parts(NamedTuple):
    """What programs sum: pairs from `begin` up to `end`, into row `into` of the result, nothing if that is negative."""

    begin: Tensor
    end: Tensor
    into: Tensor
    run: Tensor
    """The run that each belongs to. All int64 [programs]."""


class SegmentIndex:
    """Pairs sorted by row or by feature: run j sums the vectors at `index` from offsets[j] up to offsets[j + 1]."""

    def __init__(self, offsets: Tensor, index: Tensor, most: int) -> None:
        """Offsets int64 [runs + 1], index int64 [N] of the vector of every pair; no run has more than `most` pairs."""
        self.index, self.count = index, len(offsets) - 1
        begin, end, into = offsets[:-1], offsets[1:], torch.arange(self.count, device=offsets.device)
        # A run longer than LONGEST has fewer than twice its length / LONGEST pieces: a bound that needs no device.
        self.pieces = 2 * len(index) // LONGEST if min(most, len(index)) > LONGEST else 0
        self.whole = Parts(begin, end, into, into)
        if not self.pieces:
            return
        length = end - begin
        is_long = length > LONGEST
        pieces = torch.where(is_long, (length + LONGEST - 1) // LONGEST, 0)
        last = pieces.cumsum(0)
        self.whole = Parts(begin, end, torch.where(is_long, -1, into), into)
        self.joined = Parts(last - pieces, last, torch.where(is_long, into, -1), into)
        number = torch.arange(self.pieces, device=offsets.device)
        run = torch.searchsorted(last, number, right=True)
        used, run = run < self.count, run.clamp_max(self.count - 1)
        first = begin[run] + (number - (last - pieces)[run]) * LONGEST
        self.cut = Parts(first, torch.minimum(first + LONGEST, end[run]), torch.where(used, number, -1), run)


def weighted_sums(
    runs: SegmentIndex, value: Tensor, vectors: Tensor, out: Tensor, *, factor: float = 1.0, add: bool = False
) -> Tensor:
    """For each run, its vectors [.., W] weighted by value [N] and factor, into out [runs, W] or added to it."""
    _sums(runs.whole, runs.index, value, vectors, out, factor, add=add)
    if runs.pieces:
        partial = vectors.new_empty(runs.pieces, vectors.shape[1], dtype=torch.float32)
        _sums(runs.cut, runs.index, value, vectors, partial, 1.0, add=False)
        _join(runs, partial, out, factor, add=add)
    return out


def _join(runs: SegmentIndex, partial: Tensor, out: Tensor, factor: float, *, add: bool) -> None:
    """The sums of long runs from those of their pieces."""
    every = torch.arange(runs.pieces, device=out.device)
    _sums(runs.joined, every, torch.ones_like(every, dtype=torch.float32), partial, out, factor, add=add)


def _sums(  # noqa: PLR0917 - the kernel's own
    parts: Parts, index: Tensor, value: Tensor, vectors: Tensor, out: Tensor, factor: float, *, add: bool
) -> None:
    width = vectors.shape[1]
    columns = _columns(width)
    _launch(
        "weighted_sums",
        (len(parts.into), -(-width // columns)),
        (*parts[:3], index, value, vectors, out, factor, width),
        {"ADD": add, "PAIRS": PAIRS, "COLUMNS": columns, "num_warps": max(1, PAIRS * columns // PER_WARP)},
    )


def _columns(width: int) -> int:
    """Columns of a program: as many as possible, but few of them beyond the width."""
    columns = min(COLUMNS, _power(width))
    while columns > 64 and -(-width // columns) * columns > 1.125 * width:
        columns //= 2
    return columns


def _power(count: int) -> int:
    """The next power of two, which is what blocks are made of, and no very small one."""
    return max(16, 1 << (count - 1).bit_length())


def inner_products(
    row: Tensor, feature: Tensor, left: Tensor, right: Tensor, out: Tensor, *, factor: float = 1.0, add: bool = False
) -> Tensor:
    """Inner products of left [R, W] and right [F, W] at pairs row, feature int64 [N], into out fp32 [N] or added."""
    pairs, width = len(row), left.shape[1]
    _launch(
        "inner_products",
        (-(-pairs // PAIRS_MULTIPLIED),),
        (row, feature, left, right, out, factor, pairs, width),
        {"ADD": add, "PAIRS": PAIRS_MULTIPLIED, "COLUMNS": COLUMNS_MULTIPLIED, "num_warps": 4},
    )
    return out


def write_gradients(
    runs: SegmentIndex, value: Tensor, decoders: Sequence[WeightBlock], encoders: Sequence[WeightBlock], bias: Tensor
) -> None:
    """Gradients of a group's weights and bias [F] (see `trainer.training.gradients`).

    Runs are those of the features with the row of every pair, value fp32 [N] is in the same order. A gradient that
    stands in several decoders is their sum. Errors have at most WIDEST columns.
    """
    pull, written = torch.zeros_like(value), set()
    for block in decoders:
        _pull_and_sums(runs, value, block, pull, add=block.gradient.data_ptr() in written)
        written.add(block.gradient.data_ptr())
    for block in encoders:
        weighted_sums(runs, pull, block.beside, block.gradient, factor=block.factor)
    ones = torch.ones(len(encoders[0].beside), 1, device=bias.device)
    weighted_sums(runs, pull, ones, bias[:, None])


def _pull_and_sums(runs: SegmentIndex, value: Tensor, block: WeightBlock, pull: Tensor, *, add: bool) -> None:
    """Add a decoder's part to the pull of every pair [N], and write its gradient, or add to that, too."""
    width = block.beside.shape[1]
    columns = _power(width)
    pairs = min(PAIRS_OF_WHOLE_VECTORS, WIDEST // columns)

    def launch(parts: Parts, out: Tensor, *, add: bool) -> None:
        _launch(
            "pull_and_sums",
            (len(parts.into),),
            (*parts, runs.index, value, block.beside, block.weight, pull, out, block.factor, width),
            {"ADD": add, "PAIRS": pairs, "COLUMNS": columns, "num_warps": max(1, pairs * columns // PER_WARP)},
        )

    launch(runs.whole, block.gradient, add=add)
    if runs.pieces:
        partial = value.new_empty(runs.pieces, width)
        launch(runs.cut, partial, add=False)
        _join(runs, partial, block.gradient, 1.0, add=add)


class Search:
    """Entries above a bound of a matrix that comes in blocks of rows, found without waiting for how many there are."""

    def __init__(self, blocks: Callable[[], Iterator[Tensor]], bound: Tensor, entries: int) -> None:
        """Blocks [rows, F], in order, as often as asked for, each of which the next may overwrite; bound [F].

        The matrix has so many entries. The search begins at once, into room for most cases.
        """
        self._blocks, self._bound = blocks, bound
        self._place, self._value, total = self._run(entries // SELDOM + 1)
        self._total = ScalarReadback(total)

    def found(self) -> tuple[Tensor, Tensor]:
        """Flat indices in order, int64 [N], and values, fp32 [N]; waits for their number."""
        total = int(self._total.number())
        if total > len(self._place):
            self._place, self._value, _ = self._run(total)
        return self._place[:total], self._value[:total]

    def _run(self, room: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices and values of the first entries for which there is room, and the number of all of them [1]."""
        device, before = self._bound.device, 0
        place = torch.empty(room, dtype=torch.int64, device=device)
        value = torch.empty(room, dtype=torch.float32, device=device)
        total = torch.zeros(1, dtype=torch.int64, device=device)
        for dense in self._blocks():
            rows, columns = dense.shape
            block = min(COLUMNS_SEARCHED, _power(columns))
            grid = (rows, -(-columns // block))
            counts = torch.empty(grid, dtype=torch.int32, device=device)
            _launch("count_above", grid, (dense, self._bound, counts, columns), {"BLOCK": block})
            ends = total + counts.flatten().cumsum(0)
            given = (dense, self._bound, ends, place, value, before, room, columns)
            _launch("write_above", grid, given, {"BLOCK": block})
            total, before = ends[-1:], before + dense.numel()
        return place, value, total


def _launch(kernel: str, grid: tuple[int, ...], given: tuple[Any, ...], settings: dict[str, Any]) -> None:
    """Start a kernel on the device of its tensors; without programs there is nothing to start."""
    if all(grid):
        on_device = torch.cuda.device(given[0].device) if given[0].is_cuda else contextlib.nullcontext()
        with on_device:
            getattr(_kernels(), kernel)[grid](*given, **settings)


@cache
def _kernels() -> Any:
    """The kernels; Triton takes a while to import, so not before they are needed."""
    return import_module("trainer.kernels.triton_kernels")
