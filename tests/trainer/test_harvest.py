"""Harvest stores what each model computes at every anchor, and resumes after a kill."""

import json
import multiprocessing
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds.tiny_diff import tiny_diff
from trainer import harvest
from trainer.errors import CorpusError, StoreError
from trainer.harvest import Harvest
from trainer.models.hookpoint import locate, read
from trainer.models.source import load_source
from trainer.reading import activations
from trainer.reading.activations import batches_by_length
from trainer.recipe.fitting import CorpusRecipe
from trainer.recipe.recipe import load_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tiny_diff(tmp_path_factory.mktemp("world"))
    recipe = load_recipe(path)
    return recipe, [load_source(source) for source in recipe.sources]


def run(world, path: Path, **changes) -> ActivationStore:
    recipe, sources = world
    recipe = recipe.model_copy(update=changes)
    return Harvest(recipe, sources, path, "fingerprint").run(Progress(RunFolder(path.parent / "run"), "tiny"))


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    return run(world, tmp_path_factory.mktemp("harvest") / "store")


def test_a_stored_row_is_the_activation_at_the_token_that_ends_there(world, store):
    sequences = store.sequences().to_pylist()
    _, sources = world
    rng = np.random.default_rng(0)
    block = next(iter(store.blocks("train", rows=2000)))
    for row in rng.choice(len(block.sequence), 25, replace=False):
        sequence = sequences[int(block.sequence[row])]
        end = int(block.byte_end[row])
        for index, source in enumerate(sources):
            ends = [token["byte_end"] for token in sequence["tokens"][index]]
            at = ends.index(end)
            ids = torch.tensor([sequence["token_ids"][index]])
            alone = read(source, locate(source, "resid_post", source.recipe.layer), ids)[0, at]
            torch.testing.assert_close(block.rows[source.name][row].float(), alone, rtol=0.02, atol=0.02)
        assert int(block.position[row]) == [t["byte_end"] for t in sequence["tokens"][0]].index(end)


def test_every_row_ends_at_the_same_byte_of_the_same_text_in_both_sources(store):
    sequences = store.sequences().to_pylist()
    for block in store.blocks():
        for number, end in zip(block.sequence.tolist(), block.byte_end.tolist(), strict=True):
            text = sequences[number]["text"].encode()
            for tokens in sequences[number]["tokens"]:
                assert 0 < end <= len(text)
                assert end in {token["byte_end"] for token in tokens}


def test_sequences_begin_with_bos_and_fit_the_context(world, store):
    recipe, sources = world
    for sequence in store.sequences().to_pylist():
        for source, ids in zip(sources, sequence["token_ids"], strict=True):
            assert ids[0] == source.bos_id
            assert len(ids) <= recipe.corpus.context


def test_each_model_reads_chats_in_its_own_rendering(world, store):
    chats = [sequence for sequence in store.sequences().to_pylist() if sequence["is_chat"]]
    templated = ["".join(token["text"] for token in chat["tokens"][0]) for chat in chats]
    plain = ["".join(token["text"] for token in chat["tokens"][1]) for chat in chats]

    assert any("<|im_start|>" in text for text in templated)
    assert not any("<|im_start|>" in text for text in plain)
    assert any(chat["template_spans"] for chat in chats)


def test_held_out_rows_come_from_other_documents_than_training_rows(store):
    sequences = store.sequences().to_pylist()
    found = {
        split: {sequences[n]["document"] for block in store.blocks(split) for n in block.sequence.tolist()}
        for split in ("train", "held_out")
    }

    assert found["train"] and found["held_out"]
    assert not found["train"] & found["held_out"]


def test_a_killed_harvest_resumes_to_the_same_store(world, store, tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "POOL_ROWS", 400)
    whole = run(world, tmp_path / "whole")
    process = multiprocessing.get_context("fork").Process(target=run, args=(world, tmp_path / "killed"))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "harvest.json").is_file() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (tmp_path / "killed" / "manifest.json").is_file(), "it was killed before the end"

    again = run(world, tmp_path / "killed")

    assert [shard.sha256 for shard in again.manifest.shards] == [shard.sha256 for shard in whole.manifest.shards]
    assert again.sequences().equals(whole.sequences())


def test_outliers_are_dropped_and_counted(world, tmp_path):
    recipe, _ = world
    strict = recipe.harvest.model_copy(update={"outlier_norm": 1.05})
    store = run(world, tmp_path / "strict", harvest=strict)

    counts = store.manifest.statistics["counts"]
    medians = store.manifest.statistics["medians"]
    assert sum(count for key, count in counts.items() if key.endswith("/outliers")) > 0
    for block in store.blocks():
        for name, rows in block.rows.items():
            assert float(rows.float().norm(dim=1).max()) <= 1.06 * medians[name]


def test_too_little_coverage_raises_an_error_with_the_setting(world, tmp_path):
    recipe, _ = world
    with pytest.raises(StoreError, match=r"harvest\.minimum_coverage"):
        run(world, tmp_path / "store", harvest=recipe.harvest.model_copy(update={"minimum_coverage": 0.9999}))


def test_a_corpus_without_usable_text_is_rejected(world, tmp_path):
    recipe, _ = world
    (tmp_path / "empty.jsonl").write_text('{"text": "x"}\n')
    part = recipe.corpus.mix[0].model_copy(update={"path": str(tmp_path / "empty.jsonl"), "name": "empty"})
    with pytest.raises(CorpusError):
        run(world, tmp_path / "store", corpus=recipe.corpus.model_copy(update={"mix": (part,)}))


def test_the_coverage_line_gives_shares_and_counts():
    counts = Counter({"a//anchors": 90, "b//anchors": 9, "a//possible": 100, "b//possible": 10})
    counts |= {"a//documents": 3, "b//documents": 1, "a//documents_over_80": 3, "a/0/outliers": 2, "b/1/outliers": 1}

    line = harvest.coverage_line(counts)

    assert "90.0% of the possible anchors" in line
    assert "3 of 4 documents (75.0%) keep at least 80%" in line
    assert "3 outlier and 0 special" in line


def test_batches_group_similar_lengths_within_the_token_limit():
    lengths = [5, 1, 9, 4, 9, 2]
    batches = list(batches_by_length(lengths, tokens=12))

    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 12 for batch in batches)
    assert batches[0] == [2]


@pytest.mark.parametrize(
    ("texts", "context", "message"),
    [
        (["short"] * 5, 64, r"no rows: none of its \d documents has 8 tokens .* corpus\.context \(64\)"),
        (
            [f"a much longer text, number {n}, with many words in it to read" for n in range(9)],
            8,
            r"corpus\.context \(8\)",
        ),
        (
            ["one text alone, with many words in it, to read and to learn from"],
            64,
            r"and none held out, .* corpus\.held_out is",
        ),
    ],
)
def test_a_corpus_that_is_too_small_is_told_in_terms_of_the_recipe(world, tmp_path, texts, context, message):
    (tmp_path / "small.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = CorpusRecipe.model_validate(
        {"context": context, "held_out": 1e-9, "mix": [{"path": str(tmp_path / "small.jsonl")}]}
    )

    with pytest.raises(CorpusError, match=message):
        run(world, tmp_path / "store", corpus=corpus)
    assert not (tmp_path / "store" / "manifest.json").exists()
