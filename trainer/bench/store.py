"""Bench of the store: shuffled batches read from shards, against training on them."""

import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch

from trainer.bench.machine import Machine
from trainer.bench.repeats import Repeats, in_turns, ratios
from trainer.bench.report import Report, shown
from trainer.bench.train import WARM_UP, Setup, demo_setup, recipe_of, synthetic_store
from trainer.store.batches import Batches, window_rows
from trainer.store.store import ActivationStore, Rows, StoreWriter
from trainer.training.trainer import Training

ROWS = 2**17
"""Rows of the store that is read."""
SHARDS = 4
STEPS = 3
"""Training steps in a round."""


def bench_store(setup: Setup | None = None, *, rows: int = ROWS, rounds: int = 5) -> Report:
    """Read all batches of a store that was just written, and train some steps, in turns.

    The store is in the system's file cache, as one is that was just harvested. Raises UsageError, RecipeError.
    """
    machine, setup = Machine(), setup or demo_setup()
    with tempfile.TemporaryDirectory(prefix="crossdiff-bench-") as folder:
        training = Training(recipe_of(setup), synthetic_store(Path(folder) / "small", setup))
        store = repeated(training.store, Path(folder) / "large", rows)
        batches = Batches(store, setup.batch, seed=0)
        ready = cycle(list(training.batches.epoch(0)))
        _train(training, ready, WARM_UP)
        seconds = in_turns({"load": lambda: _load(batches), "train": lambda: _train(training, ready, STEPS)}, rounds)
    loading = [batches.per_epoch * setup.batch / one for one in seconds["load"]]
    trained = [STEPS * setup.batch / one for one in seconds["train"]]
    over = Repeats.of(ratios(loading, trained))
    head = ("sources", "batch", "rows/s loaded", "rows/s trained", "loading over training", "window rows")
    widths = " + ".join(map(str, setup.widths))
    window = window_rows(store.bytes_per_row)
    row = (widths, f"{setup.batch:,}", *map(shown, (Repeats.of(loading), Repeats.of(trained), over)), f"{window:,}")
    figures = {"loading_over_training": over.median, "rows_per_s": Repeats.of(loading).median}
    notes = (
        f"Loaded: {rows:,} rows in {SHARDS} shards, shuffled, to batches in memory. Shards are in the file cache.",
        f"Trained: {setup.variant}, {setup.features:,} features, k {setup.k}; rows are in memory.",
        f"Median (least–most) of {rounds}. Torch uses {torch.get_num_threads()} threads.",
        machine.note(),
    )
    return Report("Store", head, (row,), figures, notes)


def repeated(store: ActivationStore, path: Path, rows: int) -> ActivationStore:
    """A store of so many rows in several shards, the rows of a small one over and over."""
    block = next(store.blocks())
    writer, size = StoreWriter(path, store.sources), rows // SHARDS
    for _ in range(SHARDS):
        index = torch.arange(size) % len(next(iter(block.rows.values())))
        writer.add({name: x[index] for name, x in block.rows.items()}, {}, "train")
    writer.finish(None, {})
    return ActivationStore.open(path)


def _load(batches: Batches) -> None:
    for _ in batches.epoch(0):
        pass


def _train(training: Training, ready: Iterator[Rows], steps: int) -> None:
    for rows in islice(ready, steps):
        training.run_step(rows)
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
