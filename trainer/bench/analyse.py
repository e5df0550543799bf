"""Bench of the analysis: the measures of all features, against encoding the same rows once."""

import contextlib
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from trainer.analysis.stage import analyse
from trainer.bench.machine import Machine
from trainer.bench.report import Report, shown
from trainer.bench.synthetic_text import synthetic_sequences
from trainer.crosscoder.crosscoder import Crosscoder, Rows, initial
from trainer.crosscoder.groups import preset
from trainer.crosscoder.normalisation import centred_rms
from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.run.folder import RunFolder
from trainer.run.peak_memory import forget_peak, peak_gigabytes
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

CONCEPTS = 512
"""Directions that the synthetic activations are sparse mixtures of."""
WORDS = 180
"""Words in a sequence, which make about two hundred rows."""
ROWS = 200
SHARD = 1 << 15
"""Rows per shard."""
SAMPLE = 1024
"""Rows from which the thresholds are taken."""
PUBLISHING = "Publishing"
"""What is left of an analysis beside its tasks: writing and checking the results."""


@dataclass(frozen=True)
class Setup:
    """What is analysed."""

    rows: int
    features: int = 8192
    k: int = 32
    widths: tuple[int, int] = (576, 640)


@dataclass(frozen=True)
class Clock:
    """Seconds that went by, and seconds of processors that were used in them."""

    wall: float
    processor: float

    @classmethod
    def of(cls, action: Callable[[], object]) -> "Clock":
        """How long an action takes."""
        wall, processor = time.perf_counter(), time.process_time()
        action()
        return cls(time.perf_counter() - wall, time.process_time() - processor)


@dataclass(frozen=True)
class Cost:
    """What one analysis took."""

    rows: int
    encode: tuple[Clock, ...]
    """Encoding all rows once and nothing else: before the analysis, and after it."""
    dense: Clock
    """The same by the dense product, as where it cannot be screened."""
    analyse: Clock
    """The whole analysis, its own encoding included."""
    parts: dict[str, float]
    """Seconds of the analysis by task."""
    peak_gb: float

    @property
    def encode_s(self) -> float:
        """Seconds of an encoding, on average."""
        return mean(clock.wall for clock in self.encode)

    @property
    def over_encode(self) -> float:
        """What the analysis takes on top of an encoding, over that encoding."""
        return self.analyse.wall / self.encode_s - 1

    @property
    def over_dense(self) -> float:
        """What the analysis takes on top of its encoding, over an encoding by the dense product."""
        return (self.analyse.wall - self.encode_s) / self.dense.wall

    @property
    def processor_over_encode(self) -> float:
        """The same in processor time, which other programs hardly change."""
        return self.analyse.processor / mean(clock.processor for clock in self.encode) - 1


class TimedProgress(Progress):
    """Progress that also adds up the seconds of every task."""

    def __init__(self, folder: RunFolder, name: str) -> None:
        super().__init__(folder, name)
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def task(
        self, message: str, *, total: int | None, unit: str = "rows", before: int = 0
    ) -> Iterator["TimedProgress"]:
        """As ever, and the clock runs."""
        began = time.perf_counter()
        with super().task(message, total=total, unit=unit, before=before):
            yield self
        self.seconds[message] += time.perf_counter() - began


def bench_analyse(rows: int = 200_000, **sizes: Any) -> Report:
    """Analyse a synthetic store, and one with twice the rows; each in a process of its own, to see its memory.

    `sizes` are those of Setup. Contexts of made-up text are written as ever; logit effects need models and are not.
    """
    machine = Machine()
    single, double = (_alone(Setup(count, **sizes)) for count in (rows, 2 * rows))
    seconds, over = ("encode s", "densely s", "analyse s"), ("over encode", "over dense")
    head = ("rows", *seconds, *over, "of processors", "peak GB", *double.parts)
    figures = {
        "cost_over_encode": double.over_encode,
        "cost_over_dense": double.over_dense,
        "peak_memory_ratio_when_rows_double": double.peak_gb / single.peak_gb,
        "results": [_figures(cost) for cost in (single, double)],
    }
    setup = Setup(rows, **sizes)
    widths = " and ".join(map(str, setup.widths))
    notes = (
        f"{setup.features:,} features, k {setup.k}, widths {widths}; contexts written, no logit effects.",
        "over encode: what the analysis takes on top of encoding the rows once, over that encoding.",
        "over dense: the same over encoding by the dense bf16 product, as machines do that cannot screen it.",
        "of processors: over encode in processor time. The last columns are the analysis by task, in seconds.",
        f"Torch uses {torch.get_num_threads()} threads.",
        machine.note(),
    )
    rows_shown = tuple(_row(cost, tuple(double.parts)) for cost in (single, double))
    return Report("Analysis", head, rows_shown, figures, notes)


def cost_of(setup: Setup) -> Cost:
    """Make a store and a crosscoder for it, and time the analysis between two passes that only encode."""
    with tempfile.TemporaryDirectory(prefix="crossdiff-bench-") as folder:
        recipe = recipe_of(setup)
        store = synthetic_store(Path(folder) / "store", setup)
        crosscoder = synthetic_crosscoder(recipe, store, setup)
        run = RunFolder(Path(folder) / "run")
        progress = TimedProgress(run, "bench")
        before = Clock.of(partial(encode_all, store, crosscoder))
        forget_peak()
        whole = Clock.of(partial(analyse, recipe, store, crosscoder, folder=run, progress=progress))
        peak = peak_gigabytes()
        after = Clock.of(partial(encode_all, store, crosscoder))
        dense = Clock.of(partial(encode_all, store, crosscoder, compute=torch.bfloat16))
    parts = dict(progress.seconds) | {PUBLISHING: whole.wall - sum(progress.seconds.values())}
    return Cost(store.manifest.rows, (before, after), dense, whole, parts, peak)


def encode_all(store: ActivationStore, crosscoder: Crosscoder, compute: torch.dtype | None = None) -> None:
    """Read and encode every row, and keep nothing."""
    for block in store.blocks():
        crosscoder.encode(block.rows, compute=compute)


def recipe_of(setup: Setup) -> Recipe:
    """A recipe with everything else as it is by default."""
    sparsity = {"k": setup.k}
    return parse_recipe(
        {"name": "bench", "crosscoder": {"features": setup.features, "sparsity": sparsity}}, origin="the bench"
    )


def synthetic_store(path: Path, setup: Setup) -> ActivationStore:
    """About as many rows as asked for, of sparse mixtures of random directions, at places of made-up text."""
    sequences, places, _ = synthetic_sequences(max(setup.rows // ROWS, 8), WORDS, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(0)
    sources = tuple(StoredSource(f"source{number}", width) for number, width in enumerate(setup.widths))
    directions = {
        source.name: torch.nn.functional.normalize(torch.randn(CONCEPTS, source.width, generator=generator), dim=1)
        for source in sources
    }
    writer = StoreWriter(path, sources)
    for first in range(0, len(places.sequence), SHARD):
        some = slice(first, min(first + SHARD, len(places.sequence)))
        count = some.stop - first
        where = {
            "sequence": torch.from_numpy(places.sequence[some].copy()),
            "position": torch.arange(first, some.stop, dtype=torch.int32),
            "byte_end": torch.from_numpy(places.byte_end[some].astype(np.int32)),
        }
        writer.add(_mixtures(directions, count, generator), where, "train")
    writer.finish(sequences, {})
    return ActivationStore.open(path)


def synthetic_crosscoder(recipe: Recipe, store: ActivationStore, setup: Setup) -> Crosscoder:
    """Random directions, with thresholds at which k features are active on a row."""
    groups = preset(recipe.crosscoder, store.widths)
    weights = initial(store.widths, groups, decoder_norm=1.0, generator=torch.Generator().manual_seed(1))
    block = next(store.blocks(rows=SAMPLE))
    normaliser = {name: centred_rms([x]) for name, x in block.rows.items()}
    crosscoder = Crosscoder(store.widths, groups, weights, normaliser, {})
    rows = crosscoder.normalise(block.rows)
    for group in groups:
        kept = max(round(len(rows[group.reads[0]]) * setup.k * group.features / setup.features), 1)
        crosscoder.threshold[group.name] = crosscoder.pre_activations(group, rows).flatten().topk(kept).values[-1]
    return crosscoder


def _mixtures(directions: Rows, count: int, generator: torch.Generator) -> Rows:
    active = (torch.randn(count, CONCEPTS, generator=generator) - 1.5).relu()
    return {
        name: (active @ vectors + 0.01 * torch.randn(count, vectors.shape[1], generator=generator)).bfloat16()
        for name, vectors in directions.items()
    }


def _alone(setup: Setup) -> Cost:
    """Measured in a fresh process, whose memory nothing else has used."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as process:
        return process.submit(cost_of, setup).result()


def _figures(cost: Cost) -> dict[str, Any]:
    return {
        "rows": cost.rows,
        "encode_s": cost.encode_s,
        "analyse_s": cost.analyse.wall,
        "dense_s": cost.dense.wall,
        "over_encode": cost.over_encode,
        "over_dense": cost.over_dense,
        "processor_over_encode": cost.processor_over_encode,
        "parts_s": cost.parts,
        "peak_gb": cost.peak_gb,
    }


def _row(cost: Cost, parts: tuple[str, ...]) -> tuple[str, ...]:
    seconds, over = (cost.encode_s, cost.dense.wall, cost.analyse.wall), (cost.over_encode, cost.over_dense)
    figures = (*seconds, *over, cost.processor_over_encode, cost.peak_gb)
    return (f"{cost.rows:,}", *map(shown, (*figures, *(cost.parts.get(part) for part in parts))))
