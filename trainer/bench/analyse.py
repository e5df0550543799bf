"""Times the analysis of all features against encoding the same rows once."""

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
from trainer.bench.report import Report, formatted
from trainer.bench.synthetic_text import synthetic_sequences
from trainer.crosscoder.crosscoder import Crosscoder, Rows
from trainer.crosscoder.groups import build_groups
from trainer.crosscoder.initial_weights import initial_weights
from trainer.crosscoder.normalisation import centred_rms
from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.run.folder import RunFolder
from trainer.run.peak_memory import peak_gigabytes, reset_peak
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

CONCEPTS = 512
"""Random directions of which the synthetic activations are sparse mixtures."""
WORDS = 180
"""Words per sequence; they give about ROWS rows."""
ROWS = 200
SHARD = 1 << 15
"""Rows per shard."""
SAMPLE = 1024
"""Rows on which the thresholds are fitted."""
PUBLISHING = "Publishing"
"""The analysis's time outside its progress tasks: writing and checking the results."""


@dataclass(frozen=True)
class AnalyseSetup:
    """Size of the store and of the crosscoder that are analysed."""

    rows: int
    features: int = 8192
    k: int = 32
    widths: tuple[int, int] = (576, 640)


@dataclass(frozen=True)
class Timing:
    """Wall time and CPU time of a call, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def measure(cls, action: Callable[[], object]) -> "Timing":
        """Calls the action once and times it."""
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        return cls(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Cost:
    """Time and memory of one analysis."""

    rows: int
    encode: tuple[Timing, ...]
    """Encoding all rows once and nothing else, before and after the analysis."""
    dense: Timing
    """The same by the dense bf16 product, as on machines without int8 search."""
    analyse: Timing
    """The whole analysis, including its own encoding."""
    parts: dict[str, float]
    """Seconds of the analysis by progress task."""
    peak_gb: float

    @property
    def encode_s(self) -> float:
        """Mean wall time of one encoding, in seconds."""
        return mean(timing.wall for timing in self.encode)

    @property
    def over_encode(self) -> float:
        """Wall time of the analysis beyond one encoding, as a ratio to that encoding."""
        return self.analyse.wall / self.encode_s - 1

    @property
    def over_dense(self) -> float:
        """Wall time of the analysis beyond one encoding, as a ratio to the dense encoding."""
        return (self.analyse.wall - self.encode_s) / self.dense.wall

    @property
    def processor_over_encode(self) -> float:
        """`over_encode` in CPU time, which other programs hardly change."""
        return self.analyse.cpu / mean(timing.cpu for timing in self.encode) - 1


class TimedProgress(Progress):
    """Progress that also sums the seconds spent in each task."""

    def __init__(self, folder: RunFolder, name: str) -> None:
        super().__init__(folder, name)
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def task(
        self, message: str, *, total: int | None, unit: str = "rows", initial: int = 0
    ) -> Iterator["TimedProgress"]:
        """Times the task; otherwise as in `Progress`."""
        began = time.perf_counter()
        with super().task(message, total=total, unit=unit, initial=initial):
            yield self
        self.seconds[message] += time.perf_counter() - began


def bench_analyse(rows: int = 200_000, **sizes: Any) -> Report:
    """Analyse a synthetic store and one with twice the rows, each in its own process to measure its peak memory.

    `sizes` are fields of AnalyseSetup. Contexts of synthetic text are written; logit effects need models and are not.
    """
    machine = Machine()
    single, double = (_measure_in_new_process(AnalyseSetup(count, **sizes)) for count in (rows, 2 * rows))
    seconds, over = ("encode s", "dense s", "analyse s"), ("over encode", "over dense", "over encode, CPU")
    head = ("rows", *seconds, *over, "peak GB", *double.parts)
    figures = {
        "cost_over_encode": double.over_encode,
        "cost_over_dense": double.over_dense,
        "peak_memory_ratio_when_rows_double": double.peak_gb / single.peak_gb,
        "results": [_figures(cost) for cost in (single, double)],
    }
    setup = AnalyseSetup(rows, **sizes)
    widths = " and ".join(map(str, setup.widths))
    notes = (
        f"{setup.features:,} features, k {setup.k}, widths {widths}; contexts written, no logit effects.",
        "over encode: time of the analysis beyond encoding the rows once, as a ratio to that encoding.",
        "over dense: the same as a ratio to encoding by the dense bf16 product, as on machines without int8 search.",
        "over encode, CPU: over encode in CPU time. The last columns are seconds of the analysis by task.",
        f"Torch uses {torch.get_num_threads()} threads.",
        machine.note(),
    )
    table_rows = tuple(_row(cost, tuple(double.parts)) for cost in (single, double))
    return Report("Analysis", head, table_rows, figures, notes)


def measure_cost(setup: AnalyseSetup) -> Cost:
    """Builds a store and a crosscoder, and times the analysis between two passes that only encode."""
    with tempfile.TemporaryDirectory(prefix="crossdiff-bench-") as folder:
        recipe = recipe_of(setup)
        store = synthetic_store(Path(folder) / "store", setup)
        crosscoder = synthetic_crosscoder(recipe, store, setup)
        run = RunFolder(Path(folder) / "run")
        progress = TimedProgress(run, "bench")
        before = Timing.measure(partial(encode_all, store, crosscoder))
        reset_peak()
        whole = Timing.measure(partial(analyse, recipe, store, crosscoder, folder=run, progress=progress))
        peak = peak_gigabytes()
        after = Timing.measure(partial(encode_all, store, crosscoder))
        dense = Timing.measure(partial(encode_all, store, crosscoder, compute=torch.bfloat16))
    parts = dict(progress.seconds) | {PUBLISHING: whole.wall - sum(progress.seconds.values())}
    return Cost(store.manifest.rows, (before, after), dense, whole, parts, peak)


def encode_all(store: ActivationStore, crosscoder: Crosscoder, compute: torch.dtype | None = None) -> None:
    """Reads and encodes every row and discards the codes; `compute` is the dtype of a dense product."""
    for block in store.blocks():
        crosscoder.encode(block.rows, compute=compute)


def recipe_of(setup: AnalyseSetup) -> Recipe:
    """A recipe with the setup's sizes and defaults for everything else."""
    sparsity = {"k": setup.k}
    return parse_recipe(
        {"name": "bench", "crosscoder": {"features": setup.features, "sparsity": sparsity}}, origin="the bench"
    )


def synthetic_store(path: Path, setup: AnalyseSetup) -> ActivationStore:
    """A store of about `setup.rows` sparse mixtures of random directions, aligned to synthetic text."""
    sequences, row_order, _ = synthetic_sequences(max(setup.rows // ROWS, 8), WORDS, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(0)
    sources = tuple(StoredSource(f"source{number}", width) for number, width in enumerate(setup.widths))
    directions = {
        source.name: torch.nn.functional.normalize(torch.randn(CONCEPTS, source.width, generator=generator), dim=1)
        for source in sources
    }
    writer = StoreWriter(path, sources)
    for first in range(0, len(row_order.sequence), SHARD):
        rows = slice(first, min(first + SHARD, len(row_order.sequence)))
        count = rows.stop - first
        positions = {
            "sequence": torch.from_numpy(row_order.sequence[rows].copy()),
            "position": torch.arange(first, rows.stop, dtype=torch.int32),
            "byte_end": torch.from_numpy(row_order.byte_end[rows].astype(np.int32)),
        }
        writer.add(_mixtures(directions, count, generator), positions, "train")
    writer.finish(sequences, {})
    return ActivationStore.open(path)


def synthetic_crosscoder(recipe: Recipe, store: ActivationStore, setup: AnalyseSetup) -> Crosscoder:
    """A crosscoder of random directions, with thresholds at which k features are active per row."""
    groups = build_groups(recipe.crosscoder, store.widths)
    weights = initial_weights(store.widths, groups, decoder_norm=1.0, generator=torch.Generator().manual_seed(1))
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


def _measure_in_new_process(setup: AnalyseSetup) -> Cost:
    """Measures in a spawned process, so that its peak memory is the analysis's alone."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(measure_cost, setup).result()


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
    seconds = (cost.encode_s, cost.dense.wall, cost.analyse.wall)
    figures = (*seconds, cost.over_encode, cost.over_dense, cost.processor_over_encode, cost.peak_gb)
    return (f"{cost.rows:,}", *map(formatted, (*figures, *(cost.parts.get(part) for part in parts))))
