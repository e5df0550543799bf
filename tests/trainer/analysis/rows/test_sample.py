"""The sample: held-out rows first, which claims are judged on; groups of documents whole and in one fold."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.worlds.tiny_store import WIDTHS, tiny_crosscoder, tiny_store
from trainer.analysis.rows.cross_fit import fold_of_groups
from trainer.analysis.rows.sample import CLUSTER_ROWS, RowSample, sample_rows
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

SEQUENCES, ROWS_EACH = 40, 5
BYTES_PER_ROW = 2 * sum(WIDTHS.values())


def group_of(sequence: np.ndarray) -> np.ndarray:
    """Every other document is a part of the conversation that document 3 n began: groups of three sequences or so."""
    return sequence // 3 * 3


def is_held_out(sequence: np.ndarray) -> np.ndarray:
    return group_of(sequence) % 4 == 0


def store_of_groups(path: Path, *, columns: tuple[str, ...] = ("document", "document_group")) -> ActivationStore:
    """Shards of ten sequences of five rows by split; `left` holds each row's sequence and its place in it."""
    writer = StoreWriter(path, tuple(StoredSource(name, width) for name, width in WIDTHS.items()))
    for first in range(0, SEQUENCES, 10):
        sequence = np.repeat(np.arange(first, first + 10), ROWS_EACH)
        place = np.tile(np.arange(ROWS_EACH), 10)
        for split in ("train", "held_out"):
            some = np.flatnonzero(is_held_out(sequence) == (split == "held_out"))
            left, right = torch.zeros(len(some), WIDTHS["left"]), torch.ones(len(some), WIDTHS["right"])
            left[:, 0], left[:, 1] = torch.from_numpy(sequence[some]), torch.from_numpy(place[some])
            rows = {"left": left.bfloat16(), "right": right.bfloat16()}
            writer.add(rows, {"sequence": torch.from_numpy(sequence[some]).int()}, split)
    numbers = np.arange(SEQUENCES, dtype=np.int32)
    table = {"sequence": numbers, "document": numbers, "document_group": group_of(numbers)}
    writer.finish(pa.table({name: table[name] for name in ("sequence", *columns)}), {})
    return ActivationStore.open(path)


def sequences_of(sample: RowSample) -> np.ndarray:
    return sample.rows["left"][:, 0].int().numpy()


@pytest.fixture
def crosscoder() -> Crosscoder:
    return tiny_crosscoder()


def test_held_out_rows_come_first_and_claims_are_judged_on_them(tmp_path: Path, crosscoder: Crosscoder):
    store = store_of_groups(tmp_path)
    sample = sample_rows(store, crosscoder)

    sequence = sequences_of(sample)
    assert sample.size == store.manifest.rows == SEQUENCES * ROWS_EACH
    assert sample.judged == store.count("held_out")
    assert is_held_out(sequence[: sample.judged]).all() and not is_held_out(sequence[sample.judged :]).any()


def test_every_row_of_the_store_is_found_in_the_sample_by_its_number(tmp_path: Path, crosscoder: Crosscoder):
    store = store_of_groups(tmp_path)
    sample = sample_rows(store, crosscoder)

    stored = torch.cat([block.rows["left"] for block in store.blocks(rows=7)])
    assert torch.equal(sample.rows["left"][torch.from_numpy(sample.index)], stored)


def test_a_group_has_one_number_one_fold_and_one_split(tmp_path: Path, crosscoder: Crosscoder):
    sample = sample_rows(store_of_groups(tmp_path), crosscoder)

    group, fold = group_of(sequences_of(sample)), fold_of_groups(group_of(np.arange(SEQUENCES)))
    assert sample.clusters == len(np.unique(group))
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        assert len(np.unique(sample.cluster[rows])) == len(np.unique(sample.fold[rows])) == 1
        assert (rows < sample.judged).all() or (rows >= sample.judged).all()
    assert (sample.fold == fold[sequences_of(sample)]).all() and set(fold) == {0, 1}


def test_without_groups_every_document_is_one(tmp_path: Path, crosscoder: Crosscoder):
    sample = sample_rows(store_of_groups(tmp_path, columns=("document",)), crosscoder)

    assert sample.clusters == SEQUENCES


def test_of_a_large_store_whole_sequences_are_taken_of_either_split(tmp_path: Path, crosscoder: Crosscoder):
    store = store_of_groups(tmp_path)
    sample = sample_rows(store, crosscoder, max_bytes=100 * BYTES_PER_ROW)

    counts = np.bincount(sequences_of(sample), minlength=SEQUENCES)
    assert set(counts) == {0, ROWS_EACH} and sample.size <= 100
    # 70 held-out rows and room for 50: every second of their sequences; every third of the others.
    assert 25 <= sample.judged <= 50 and is_held_out(sequences_of(sample)[: sample.judged]).all()
    assert (sample.index >= 0).sum() == sample.size and set(sample.index) - {-1} == set(range(sample.size))


def test_claims_are_judged_on_all_rows_where_none_are_held_out(tmp_path: Path, crosscoder: Crosscoder):
    store = tiny_store(tmp_path, {}, with_texts=False)
    sample = sample_rows(store, crosscoder)

    assert sample.judged == sample.size == store.manifest.rows == store.count("train")
    assert sample.clusters == -(-sample.size // CLUSTER_ROWS)
