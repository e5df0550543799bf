"""Times reading shuffled batches from shards against training on them."""

import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch

from trainer.bench.machine import Machine
from trainer.bench.repeats import Repeats, ratios, time_interleaved
from trainer.bench.report import Report, formatted
from trainer.bench.train import WARM_UP, TrainSetup, demo_setup, recipe_of, synthetic_store
from trainer.store.batches import Batches, window_rows
from trainer.store.store import ActivationStore, Rows, StoreWriter
from trainer.training.trainer import Training

ROWS = 2**17
"""Rows of the store read in the bench."""
SHARDS = 4
STEPS = 3
"""Training steps in a round."""


def bench_store(setup: TrainSetup | None = None, *, rows: int = ROWS, rounds: int = 5) -> Report:
    """Read all batches of a freshly written store, interleaved with training steps.

    The store is in the system's file cache, as after a harvest. Raises UsageError, RecipeError.
    """
    machine, setup = Machine(), setup or demo_setup()
    with tempfile.TemporaryDirectory(prefix="crossdiff-bench-") as folder:
        training = Training(recipe_of(setup), synthetic_store(Path(folder) / "small", setup))
        store = enlarged_store(training.store, Path(folder) / "large", rows)
        batches = Batches(store, setup.batch, seed=0)
        batches_in_memory = cycle(list(training.batches.epoch(0)))
        _train(training, batches_in_memory, WARM_UP)
        seconds = time_interleaved(
            {"load": lambda: _load(batches), "train": lambda: _train(training, batches_in_memory, STEPS)}, rounds
        )
    loading = [batches.per_epoch * setup.batch / duration for duration in seconds["load"]]
    trained = [STEPS * setup.batch / duration for duration in seconds["train"]]
    over = Repeats.from_values(ratios(loading, trained))
    head = ("sources", "batch", "rows/s loaded", "rows/s trained", "loading over training", "window rows")
    widths = " + ".join(map(str, setup.widths))
    window = window_rows(store.bytes_per_row)
    row = (
        widths,
        f"{setup.batch:,}",
        *map(formatted, (Repeats.from_values(loading), Repeats.from_values(trained), over)),
        f"{window:,}",
    )
    figures = {"loading_over_training": over.median, "rows_per_s": Repeats.from_values(loading).median}
    notes = (
        f"Loaded: {rows:,} rows in {SHARDS} shards, shuffled into batches in memory. Shards are in the file cache.",
        f"Trained: {setup.variant}, {setup.features:,} features, k {setup.k}; rows are in memory.",
        f"Median (least–most) of {rounds}. Torch uses {torch.get_num_threads()} threads.",
        machine.note(),
    )
    return Report("Store", head, (row,), figures, notes)


def enlarged_store(store: ActivationStore, path: Path, rows: int) -> ActivationStore:
    """Writes a store of `rows` rows in SHARDS shards, repeating the rows of a small one."""
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


def _train(training: Training, batches: Iterator[Rows], steps: int) -> None:
    for rows in islice(batches, steps):
        training.run_step(rows)
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
