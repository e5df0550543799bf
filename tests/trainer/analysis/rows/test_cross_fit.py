"""The two folds of the rows: documents stay whole."""

from pathlib import Path

import numpy as np
import torch

from tests.worlds.tiny_activations import tiny_activations
from tests.worlds.tiny_store import SEQUENCES, rows, tiny_store
from trainer.analysis.rows.cross_fit import TwoFold, fold_of_groups


def folds_of_rows(store) -> np.ndarray:
    folds, first, parts = TwoFold.from_store(store), 0, []
    for block in store.blocks(rows=5):
        parts.append(folds.folds_of_block(block, first))
        first += len(parts[-1])
    return torch.cat(parts).numpy()


def test_no_document_is_in_both_folds(tmp_path: Path):
    order = [rows()[index] for index in np.random.default_rng(0).permutation(len(rows()))]
    store = tiny_store(tmp_path, {}, order=order)

    fold = folds_of_rows(store)

    document = np.array([SEQUENCES[sequence].document for sequence, _ in order])
    for number in np.unique(document):
        assert len(np.unique(fold[document == number])) == 1
    assert set(fold) == {0, 1}


def test_folds_have_equally_many_documents_in_no_pattern():
    document = np.repeat(np.arange(1001), 3)

    fold = fold_of_groups(document)

    assert (fold.reshape(1001, 3) == fold.reshape(1001, 3)[:, :1]).all()
    assert fold[::3].sum() == 500
    assert abs(np.corrcoef(fold[::3], np.arange(1001))[0, 1]) < 0.1
    assert abs(np.corrcoef(fold[:-3:3], fold[3::3])[0, 1]) < 0.1


def test_the_fold_of_a_document_does_not_depend_on_the_order_of_sequences():
    document = np.array([5, 3, 5, 9, 1])

    fold = fold_of_groups(document)
    backwards = fold_of_groups(document[::-1])

    assert backwards[::-1].tolist() == fold.tolist()


def test_a_store_without_documents_is_cut_in_the_middle(tmp_path: Path):
    fold = folds_of_rows(tiny_activations(tmp_path, rows=100, shards=3, held_out=21))

    # Three shards of 33 rows and one of 21.
    assert fold.tolist() == [0] * 60 + [1] * 60
