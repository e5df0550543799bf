"""The store bench reads every batch of real shards and trains real steps."""

from pathlib import Path

import torch

from trainer.bench.store import bench_store, enlarged_store
from trainer.bench.train import TrainSetup, synthetic_store

TINY = TrainSetup("dfc", (8, 12), 40, 3, 32)


def test_the_ratio_is_rows_loaded_over_rows_trained():
    report = bench_store(TINY, rows=512, rounds=2)

    assert set(report.figures) == {"loading_over_training", "rows_per_s"}
    assert report.figures["loading_over_training"] > 0 and report.figures["rows_per_s"] > 0
    assert "512 rows in 4 shards" in report.text()


def test_a_store_is_enlarged_by_repeating_its_rows(tmp_path: Path):
    small = synthetic_store(tmp_path / "small", TINY)
    large = enlarged_store(small, tmp_path / "large", 400)

    assert large.count("train") == 400 and len(large.shards("train")) == 4
    first = next(small.blocks()).rows["source1"]
    assert torch.equal(next(large.blocks()).rows["source1"][64:100], first[:36])
