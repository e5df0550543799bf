"""The training bench measures real steps of every given setup."""

from pathlib import Path

import torch

from trainer.bench.prerequisites import DEMO
from trainer.bench.train import TrainSetup, bench_train, demo_setup, recipe_of, synthetic_store
from trainer.recipe.recipe import load_recipe

KEYS = {
    "variant",
    "widths",
    "features",
    "k",
    "batch",
    "rows_per_s",
    "over_encoder_product_bf16",
    "over_dictionary_learning",
    "over_sparsify",
    "peak_gb",
}
"""Public keys of the figures."""
TINY = (TrainSetup("dfc", (8, 12), 40, 3, 32), TrainSetup("standard", (8, 8), 24, 2, 16))


def test_every_setup_has_all_figures():
    figures = bench_train(TINY, rounds=2).figures

    assert list(figures) == ["results"]
    assert all(set(result) >= KEYS for result in figures["results"])
    first, second = figures["results"]
    assert (first["variant"], first["widths"], first["features"], first["k"], first["batch"]) == (
        "dfc",
        [8, 12],
        40,
        3,
        32,
    )
    assert second["widths"] == [8, 8]
    assert first["rows_per_s"] > 0 and first["peak_gb"] > 0
    assert first["over_dictionary_learning"] is None and first["over_sparsify"] is None
    has_product = torch.cpu._is_avx512_bf16_supported() or torch.cuda.is_available()
    assert (first["over_encoder_product_bf16"] is not None) == has_product


def test_by_default_the_demo_s_own_setup_is_measured_first():
    recipe = load_recipe(DEMO)

    assert demo_setup().features == recipe.crosscoder.features == 8192
    assert demo_setup().batch == 512, "by the rule for its rows and features"


def test_steps_are_timed_at_the_final_k():
    sparsity = recipe_of(TINY[0]).crosscoder.sparsity

    assert (sparsity.k, sparsity.k_start) == (3, 3)


def test_synthetic_rows_have_the_given_widths_and_are_deterministic(tmp_path: Path):
    one = next(iter(synthetic_store(tmp_path / "one", TINY[0]).blocks()))
    other = next(iter(synthetic_store(tmp_path / "other", TINY[0]).blocks()))

    assert {name: tuple(rows.shape) for name, rows in one.rows.items()} == {"source0": (64, 8), "source1": (64, 12)}
    assert all(torch.equal(one.rows[name], other.rows[name]) for name in one.rows)


def test_a_peer_that_can_be_imported_is_measured_where_widths_are_equal(tmp_path: Path, monkeypatch):
    folder = tmp_path / "dictionary_learning" / "trainers"
    folder.mkdir(parents=True)
    (folder / "crosscoder.py").write_text(
        "class BatchTopKCrossCoderTrainer:\n"
        "    def __init__(self, *, activation_dim, dict_size, k, num_layers, **_):\n"
        "        assert (activation_dim, dict_size, k, num_layers) == (8, 24, 2, 2)\n"
        "    def update(self, step, x):\n"
        "        assert x.shape == (16, 2, 8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    unequal, equal = bench_train(TINY, rounds=2).figures["results"]

    assert unequal["over_dictionary_learning"] is None
    assert equal["over_dictionary_learning"] > 0 and equal["over_sparsify"] is None
