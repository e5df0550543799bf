"""The analysis bench measures a real analysis, task by task."""

from pathlib import Path

import pytest

from trainer.bench.analyse import (
    PUBLISHING,
    AnalyseSetup,
    bench_analyse,
    recipe_of,
    synthetic_crosscoder,
    synthetic_store,
)

TINY = {"features": 64, "k": 4, "widths": (12, 20)}


def test_all_figures_are_reported_and_the_parts_add_up():
    report = bench_analyse(2048, **TINY)

    assert set(report.figures) == {
        "cost_over_encode",
        "cost_over_dense",
        "peak_memory_ratio_when_rows_double",
        "results",
    }
    single, double = (result["rows"] for result in report.figures["results"])
    assert single == pytest.approx(2048, rel=0.1)
    assert double / single == pytest.approx(2, rel=0.05)
    for result in report.figures["results"]:
        assert sum(result["parts_s"].values()) == pytest.approx(result["analyse_s"])
        assert {"Encoding", "Measuring features", "Comparing features", PUBLISHING} <= set(result["parts_s"])
        expected = (result["analyse_s"] - result["encode_s"]) / result["encode_s"]
        assert result["over_encode"] == pytest.approx(expected)
        assert result["over_dense"] == pytest.approx((result["analyse_s"] - result["encode_s"]) / result["dense_s"])
        assert result["processor_over_encode"] > 0
    assert report.figures["cost_over_encode"] == report.figures["results"][1]["over_encode"]


def test_about_k_features_are_active_on_a_row_of_the_synthetic_store(tmp_path: Path):
    setup = AnalyseSetup(4000, **TINY)
    store = synthetic_store(tmp_path, setup)
    crosscoder = synthetic_crosscoder(recipe_of(setup), store, setup)

    codes = [crosscoder.encode(block.rows) for block in store.blocks()]

    rows = sum(found.rows for found in codes)
    assert rows == pytest.approx(4000, rel=0.05)
    assert sum(len(found.row) for found in codes) / rows == pytest.approx(4, rel=0.1)
    assert store.sequences() is not None
