"""A whole analysis of a store in which every firing is known."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch

from tests.worlds.tiny_store import FEATURES, rows, tiny_crosscoder, tiny_store
from trainer.analysis.per_feature.logit_effects import Unembedding
from trainer.analysis.stage import analyse
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError
from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.run.folder import RunFolder, write_json
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

AMPLITUDES = {
    # Concept 0 is "cat": shared.
    (0, 0, 7): 2.0,
    (0, 1, 5): 1.5,
    (0, 2, 11): 1.0,
    # Concept 1 fires where 0 does and once more.
    (1, 0, 7): 2.0,
    (1, 1, 5): 1.5,
    (1, 2, 11): 1.0,
    (1, 4, 5): 0.5,
    # Concept 2, only in `left`: the chat.
    (2, 3, 4): 1.0,
    (2, 3, 10): 3.0,
    (2, 3, 15): 2.5,
}
"""Concept 3 never fires."""

TABLES = ("feature", "feature_source", "sequence", "firing", "histogram", "logit", "neighbour", "source", "evidence")


def recipe(**contexts: int) -> Recipe:
    return parse_recipe({"name": "tiny", "analysis": {"contexts": {"window": 2, **contexts}}}, origin="test")


def analysed(folder: Path, store: ActivationStore, *, logits: bool = False, **contexts: int) -> dict[str, list[Any]]:
    """Rows of every table after an analysis."""
    run = RunFolder(folder / "run")
    unembeddings = {"left": Unembedding(torch.ones(4), False, torch.eye(4)[:3], lambda ids: [f"<{n}>" for n in ids])}
    path = analyse(
        recipe(**contexts),
        store,
        tiny_crosscoder(),
        folder=run,
        progress=Progress(run, "tiny"),
        unembeddings=unembeddings if logits else None,
    )
    with duckdb.connect(str(path), read_only=True) as connection:
        return {table: _records(connection, table) for table in (*TABLES, "evaluation", "training_metric", "coverage")}


def _records(connection: duckdb.DuckDBPyConnection, table: str) -> list[dict[str, Any]]:
    found = connection.execute(f"select * from {table} order by rowid")
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_every_measure_of_every_feature(tmp_path):
    found = analysed(tmp_path, tiny_store(tmp_path / "store", AMPLITUDES))
    features = found["feature"]

    assert [row["feature"] for row in features] == list(range(FEATURES))
    assert [row["group_name"] for row in features] == ["shared", "shared", "left", "right"]
    assert [row["owner"] for row in features] == ["shared", "left", "left", "right"]
    # Feature 1 fires with feature 0, which is shared; but too seldom for a probe to say whether the others tell it.
    assert [row["verdict"] for row in features] == ["", "undecided", "undecided", "undecided"]
    assert features[0]["kind"] is features[2]["kind"] is None
    assert {features[1]["kind"], features[3]["kind"]} <= {None, "noise"}, "so few are on the edge of what noise gives"
    assert {(row["feature"], row["says"]) for row in found["evidence"] if row["test"] == "twin"} == {
        (1, "doubts"),
        (2, "silent"),
        (3, "silent"),
    }
    assert [row["firings"] for row in features] == [3, 4, 3, 0]
    assert [row["density"] for row in features] == [3 / 19, 4 / 19, 3 / 19, 0]
    assert [row["max_activation"] for row in features] == [2.0, 2.0, 3.0, 0.0]
    assert [row["mean_activation"] for row in features] == pytest.approx([1.5, 1.25, 6.5 / 3, None])
    assert [row["template_share"] for row in features] == pytest.approx([0, 0, 1 / 3, None])
    assert [row["documents"] for row in features] == [2, 3, 1, 0]
    assert [row["main_corpus"] for row in features] == ["wiki", "wiki", "chat", None]
    assert [row["main_corpus_share"] for row in features] == [1, 1, 1, None]
    assert features[3]["score"] is None
    assert features[2]["score"] >= 2
    assert features[0]["score"] < 1
    assert [row["name"] for row in found["source"]] == ["left", "right"]


def test_selected_firings_with_their_contexts(tmp_path):
    found = analysed(tmp_path, tiny_store(tmp_path / "store", AMPLITUDES), per_quantile=1)
    top = [row for row in found["firing"] if row["bucket"] == "top"]

    assert [(row["feature"], row["rank"], row["sequence"], row["peak"], row["text"]) for row in top] == [
        (0, 0, 0, 2.0, "the cat sat on"),
        (0, 1, 1, 1.5, "a cat and"),
        (0, 2, 2, 1.0, " dog cat"),
        (1, 0, 0, 2.0, "the cat sat on"),
        (1, 1, 1, 1.5, "a cat and"),
        (1, 2, 2, 1.0, " dog cat"),
        (1, 3, 4, 0.5, "go \U0001f9ea"),
        (2, 0, 3, 3.0, ":hallo"),
    ]
    assert [(row["feature"], row["bucket"], row["peak"]) for row in found["firing"] if row["bucket"] != "top"] == [
        (0, "q3", 1.0),
        (0, "q4", 1.5),
        (0, "q5", 2.0),
        (1, "q2", 0.5),
        (1, "q3", 1.0),
        (1, "q4", 1.5),
        (1, "q5", 2.0),
        (2, "q2", 1.0),
        # 2.5 and 3.0 are both in the last fifth; one is drawn.
        (2, "q5", found["firing"][-2]["peak"]),
    ]
    assert [row["sequence"] for row in found["sequence"]] == [0, 1, 2, 3, 4]
    assert [row["held_out"] for row in found["sequence"]] == [False, False, True, False, False]


def test_features_of_different_owners_that_fire_together_are_twins(tmp_path):
    found = analysed(tmp_path, tiny_store(tmp_path / "store", AMPLITUDES))

    assert [(row["feature"], row["other"], row["kind"], row["cosine"]) for row in found["neighbour"]] == [
        (0, 1, "twin", 0.0),
        (1, 0, "twin", 0.0),
    ]


def test_logit_effects_are_of_features_that_fire_in_sources_they_write_to(tmp_path):
    found = analysed(tmp_path, tiny_store(tmp_path / "store", AMPLITUDES), logits=True)

    assert [(row["feature"], row["token"], row["effect"]) for row in found["logit"] if row["rank"] == 1] == [
        (0, "<0>", 1.0),
        (1, "<1>", 1.0),
        (2, "<2>", 1.0),
    ]


def test_the_order_of_rows_in_the_store_changes_nothing(tmp_path):
    shuffled = [rows()[int(index)] for index in torch.randperm(len(rows()), generator=torch.Generator().manual_seed(0))]
    one = analysed(tmp_path / "1", tiny_store(tmp_path / "1", AMPLITUDES), logits=True)
    two = analysed(tmp_path / "2", tiny_store(tmp_path / "2", AMPLITUDES, order=shuffled), logits=True)

    for table in TABLES:
        assert one[table] == two[table], table


def test_a_store_without_texts_gives_everything_but_contexts(tmp_path):
    found = analysed(tmp_path, tiny_store(tmp_path / "store", AMPLITUDES, with_texts=False), logits=True)

    assert found["firing"] == found["sequence"] == []
    assert [row["firings"] for row in found["feature"]] == [3, 4, 3, 0]
    assert [row["documents"] for row in found["feature"]] == [None] * 4
    assert [row["first_token_share"] for row in found["feature"]] == [None] * 4
    assert len(found["histogram"]) > 0
    assert len(found["logit"]) > 0
    assert len(found["neighbour"]) == 2


def test_results_of_other_stages_are_included(tmp_path):
    run = RunFolder(tmp_path / "run")
    write_json(run.evaluation, [{"source": "right", "measure": "variance_explained", "value": 0.8}])
    run.metrics.write_text('{"step": 0, "loss": 2.5}\n')
    found = analysed(tmp_path, tiny_store(tmp_path / "store", AMPLITUDES))

    assert found["evaluation"] == [{"source": 1, "measure": "variance_explained", "value": 0.8}]
    assert found["training_metric"] == [{"step": 0, "measure": "loss", "value": 2.5}]
    assert found["coverage"] == []


def test_a_crosscoder_of_other_sources_is_refused_before_anything_is_written(tmp_path):
    writer = StoreWriter(tmp_path / "store", (StoredSource("left", 4), StoredSource("right", 6)))
    writer.add({"left": torch.zeros(1, 4).bfloat16(), "right": torch.zeros(1, 6).bfloat16()}, {}, "train")
    writer.finish(None, {})

    with pytest.raises(CrosscoderError, match=r"right \(width 5\).*right \(width 6\)"):
        analysed(tmp_path, ActivationStore.open(tmp_path / "store"))
    assert not (tmp_path / "run").exists()


def test_a_difference_of_two_sources_is_a_source_of_its_own_behind_those_of_the_store(tmp_path):
    store = StoreWriter(tmp_path / "store", (StoredSource("a", 2, hookpoint="resid_post.3"), StoredSource("b", 2)))
    block = {"a": torch.tensor([[1.0, 0], [0, 0]]).bfloat16(), "b": torch.tensor([[3.0, 0], [0, 0]]).bfloat16()}
    store.add(block, {}, "train")
    store.finish(None, {})
    weights = {
        "encoder.b-minus-a.b-minus-a": torch.tensor([[1.0, 0]]),
        "decoder.b-minus-a.b-minus-a": torch.tensor([[1.0, 0]]),
        "encoder_bias.b-minus-a": torch.zeros(1),
        "decoder_bias.b-minus-a": torch.zeros(2),
    }
    name = "b-minus-a"
    crosscoder = Crosscoder(
        {name: 2},
        (Group(name, 1, 0, (name,), (name,)),),
        weights,
        {name: Normaliser(torch.zeros(2), 1.0)},
        {name: torch.tensor(0.1)},
        differences={name: ("b", "a")},
    )
    run = RunFolder(tmp_path / "run")
    opened = ActivationStore.open(tmp_path / "store")
    path = analyse(recipe(), opened, crosscoder, folder=run, progress=Progress(run, "tiny"))
    with duckdb.connect(str(path), read_only=True) as connection:
        sources, features, parts = (_records(connection, table) for table in ("source", "feature", "feature_source"))

    assert [(row["source"], row["name"], row["hookpoint"], row["layer"]) for row in sources] == [
        (0, "a", "resid_post", 3),
        (1, "b", "", None),
        (2, "b-minus-a", "", None),
    ]
    assert [(row["owner"], row["verdict"], row["max_activation"]) for row in features] == [("b-minus-a", "", 2.0)]
    assert [(row["source"], row["norm_share"]) for row in parts] == [(2, 1.0)]


def test_results_say_how_much_the_sources_tell_of_each_other(tmp_path):
    store = tiny_store(tmp_path / "store", AMPLITUDES)
    run = RunFolder(tmp_path / "run")
    path = analyse(recipe(), store, tiny_crosscoder(), folder=run, progress=Progress(run, "tiny"))

    with duckdb.connect(str(path), read_only=True) as connection:
        found = _records(connection, "predictability")
    # Four documents: too few for an interval over a part, so that only the whole is told.
    assert [(row["source"], row["given"], row["groups"]) for row in found] == [(0, "right", 4), (1, "left", 4)]
    assert {row[name] for row in found for name in ("corpus", "language", "band", "share")} == {None}
    assert all(row["low"] <= row["r2"] <= row["high"] <= 1 for row in found)
