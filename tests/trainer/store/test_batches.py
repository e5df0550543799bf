"""Batches and blocks read stores of any size in constant memory, and large shards like several small ones."""

from pathlib import Path

import pytest
import torch

from tests.worlds.tiny_activations import tiny_activations
from trainer.run.peak_memory import peak_gigabytes, reset_peak
from trainer.store import batches
from trainer.store.batches import Batches, window_rows
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

MEGABYTE = 0.001
WIDTH, SHARD = 4096, 1024
"""A shard of 8 MiB."""


def wide_store(path: Path, *, shards: int, rows: int) -> ActivationStore:
    writer = StoreWriter(path, (StoredSource("left", WIDTH),))
    for number in range(shards):
        writer.add({"left": torch.full((rows, WIDTH), float(number)).bfloat16()}, {}, "train")
    writer.finish(None, {})
    return ActivationStore.open(path)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts memory as Linux does")
@pytest.mark.parametrize(("shards", "rows"), [(24, SHARD), (1, 24 * SHARD)], ids=["many shards", "one giant shard"])
def test_a_store_larger_than_memory_is_read_in_constant_memory(tmp_path: Path, monkeypatch, shards, rows):
    store = wide_store(tmp_path / "store", shards=shards, rows=rows)
    monkeypatch.setattr("trainer.store.store.MAPPED_BYTES", SHARD * WIDTH * 2)

    def shuffled():
        for _ in Batches(store, batch=128, seed=0, window=2 * SHARD).epoch(0):
            pass

    def in_order():
        for _ in store.blocks(rows=256):
            _.rows["left"].sum()

    for read in (shuffled, in_order):
        reset_peak()
        before = peak_gigabytes()
        read()
        grown = (peak_gigabytes() - before) / MEGABYTE
        assert grown < 64, f"{read.__name__}: {grown:.0f} MB for a store of 201 MB"


def test_a_large_shard_is_split_into_slices_that_cover_every_row_once(tmp_path: Path):
    store = tiny_activations(tmp_path / "store", rows=1000, shards=1)
    found = torch.cat([rows["left"] for rows in Batches(store, batch=50, seed=3, window=170).epoch(0)])

    all_rows = torch.cat([block.rows["left"] for block in store.blocks("train")])
    assert torch.equal(found.sort(dim=0).values, all_rows.sort(dim=0).values)
    late = list(Batches(store, batch=50, seed=3, window=170).epoch(0, first=7))
    assert torch.equal(torch.cat([rows["left"] for rows in late]), found[350:])


def test_wider_rows_give_smaller_windows():
    assert window_rows(2 * (576 + 640)) == 441_505, "the whole demo: 2^30 bytes of 2432 a row"
    assert window_rows(2 * (4096 + 4096)) == 65_536
    assert window_rows(8) == batches.WINDOW_ROWS
    assert window_rows(2**31) == 1


def test_blocks_cover_a_shard_that_is_mapped_several_times(tmp_path: Path, monkeypatch):
    store = tiny_activations(tmp_path / "store", rows=1000, shards=1)
    whole = store.read(store.shards("train")[0]).rows["right"]
    monkeypatch.setattr("trainer.store.store.MAPPED_BYTES", 200 * store.bytes_per_row)

    parts = [block.rows["right"] for block in store.blocks("train", rows=64)]

    assert torch.equal(torch.cat(parts), whole)
