"""Halves of the rows: documents stay whole."""

from pathlib import Path

import numpy as np
import torch

from tests.worlds.tiny_activations import tiny_activations
from tests.worlds.tiny_store import SEQUENCES, rows, tiny_store
from trainer.analysis.rows.cross_fit import TwoFold, half_of_documents


def halves_of_rows(store) -> np.ndarray:
    halves, first, parts = TwoFold.of(store), 0, []
    for block in store.blocks(rows=5):
        parts.append(halves.of_block(block, first))
        first += len(parts[-1])
    return torch.cat(parts).numpy()


def test_no_document_is_in_both_halves(tmp_path: Path):
    order = [rows()[index] for index in np.random.default_rng(0).permutation(len(rows()))]
    store = tiny_store(tmp_path, {}, order=order)

    half = halves_of_rows(store)

    document = np.array([SEQUENCES[sequence].document for sequence, _ in order])
    for number in np.unique(document):
        assert len(np.unique(half[document == number])) == 1
    assert set(half) == {0, 1}


def test_sequences_of_many_documents_fall_into_halves_of_as_many_documents_in_no_pattern():
    document = np.repeat(np.arange(1001), 3)

    half = half_of_documents(document)

    assert (half.reshape(1001, 3) == half.reshape(1001, 3)[:, :1]).all()
    assert half[::3].sum() == 500
    assert abs(np.corrcoef(half[::3], np.arange(1001))[0, 1]) < 0.1
    assert abs(np.corrcoef(half[:-3:3], half[3::3])[0, 1]) < 0.1


def test_the_half_of_a_document_does_not_depend_on_where_its_sequences_stand():
    document = np.array([5, 3, 5, 9, 1])

    half = half_of_documents(document)
    backwards = half_of_documents(document[::-1])

    assert backwards[::-1].tolist() == half.tolist()


def test_a_store_without_documents_is_cut_in_the_middle(tmp_path: Path):
    half = halves_of_rows(tiny_activations(tmp_path, rows=100, shards=3, held_out=21))

    # Three shards of 33 rows and one of 21.
    assert half.tolist() == [0] * 60 + [1] * 60
