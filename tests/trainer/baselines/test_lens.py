"""The mean difference of activations at first tokens, on stores whose differences are known."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.worlds.tiny_store import SEQUENCES, Sequence, text_table
from trainer.analysis.per_feature.logit_effects import Unembedding
from trainer.baselines.lens import (
    BYTE_BITS,
    MeanDifference,
    difference_rows,
    first_token_keys,
    lens_rows,
    mean_difference,
)
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

WORDS = ("one", " two", " three", " four", " five", " six", " seven")
ENDS = np.cumsum([len(word) for word in WORDS]).tolist()
TEXTS = 24


def store_of(path, difference) -> ActivationStore:
    """Texts of seven words; base is all ones, and the other is `difference(text, word)` away [4]."""
    sequences = tuple(Sequence("".join(WORDS), (("<s>",), *WORDS), (("<s>",), *WORDS)) for _ in range(TEXTS))
    base = torch.ones(TEXTS * len(WORDS), 4)
    away = torch.stack([difference(text, word) for text in range(TEXTS) for word in range(len(WORDS))])
    positions = {
        "sequence": torch.arange(TEXTS, dtype=torch.int32).repeat_interleave(len(WORDS)),
        "position": torch.zeros(len(base), dtype=torch.int32),
        "byte_end": torch.tensor(ENDS, dtype=torch.int32).repeat(TEXTS),
    }
    writer = StoreWriter(path, tuple(StoredSource(name, 4, "float32") for name in ("base", "tuned")))
    order = torch.randperm(len(base), generator=torch.Generator().manual_seed(1))
    for part in order.split(50):  # in any order, over several shards
        rows = {"base": base[part], "tuned": (base + away)[part]}
        writer.add(rows, {name: column[part] for name, column in positions.items()}, "train")
    writer.finish(text_table(sequences), {})
    return ActivationStore.open(path)


def test_first_tokens_are_counted_without_bos_and_without_chats_where_there_is_text():
    keys = first_token_keys(text_table(SEQUENCES), 2, 0)

    assert keys[0].tolist() == [3, 7, 11, 14, 18], "the first five of six"
    assert keys[1].tolist() == [(1 << BYTE_BITS) + end for end in (1, 5, 9, 11, 15)], "after <s>"
    assert keys[2].tolist() == [(2 << BYTE_BITS) + end for end in (3, 7, 11)] + [-1, -1]
    assert (keys[3] == -1).all(), "a chat"
    assert first_token_keys(text_table(SEQUENCES[3:4]), 2, 0)[0, 0] == 4, "only chats: then they count"


def test_a_source_minus_itself_is_zero(tmp_path):
    found = mean_difference(store_of(tmp_path / "store", lambda *_: torch.zeros(4)), "base", "base")

    assert found.texts.tolist() == [TEXTS] * 5
    assert found.norm.tolist() == found.expected_norm.tolist() == [0.0] * 5
    assert found.typical_norm.tolist() == [2.0] * 5
    assert lens_rows(found, (0, 0), 0, unembedding(), 2) == []


def test_a_difference_common_to_all_texts_remains_and_individual_ones_average_out(tmp_path):
    axis = torch.eye(4)

    def difference(text: int, word: int) -> torch.Tensor:
        if word == 0:
            return 3 * axis[1]  # the same in every text
        return (-1) ** text * 3 * axis[2]  # as often one way as the other

    found = mean_difference(store_of(tmp_path / "store", difference), "base", "tuned")

    assert found.mean[0].tolist() == [0, 3, 0, 0]
    assert found.norm.tolist() == [3, 0, 0, 0, 0]
    assert found.expected_norm[0] == 0, "no text differs from the mean"
    assert found.expected_norm[1] == pytest.approx(3 / TEXTS**0.5), "of so many independent texts"
    assert [row["texts"] for row in difference_rows(found, (0, 1))] == [TEXTS] * 5


def unembedding() -> Unembedding:
    weight = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, -4.0, 0, 0], [0, 0, 1.0, 1.0]])
    return Unembedding.from_norm(nn.Identity(), weight, lambda ids: [f"token {number}" for number in ids])


def test_the_lens_reads_the_difference_through_an_unembedding():
    mean = torch.zeros(5, 4, dtype=torch.float64)
    mean[0, 1] = 3.0
    found = MeanDifference(np.array([30, 19, 0, 0, 0]), mean, np.ones(5), np.ones(5))

    rows = lens_rows(found, (0, 2), 2, unembedding(), 1)

    assert [(row["position"], row["rank"], row["token"], row["effect"]) for row in rows] == [
        (0, 1, "token 1", 2.0),
        (0, -1, "token 2", -4.0),
    ]
    assert {(row["base"], row["source"], row["reader"]) for row in rows} == {(0, 2, 2)}
    assert [row["position"] for row in difference_rows(found, (0, 2))] == [0], "19 texts are too few"
