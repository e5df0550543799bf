"""A store that is incomplete, damaged or of another shape is rejected with the cause and the remedy."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worlds.tiny_activations import tiny_activations
from tests.worlds.tiny_store import tiny_store
from trainer.errors import StoreError
from trainer.run.checksum import sha256_of
from trainer.store.store import ActivationStore


@pytest.fixture
def path(tmp_path):
    return tiny_activations(tmp_path / "store", rows=300, shards=3, held_out=50).path


def edit(path, change) -> None:
    """Change the manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def rewrite(path, change) -> None:
    """Change the tensors of the first shard, and its checksum with them."""
    shard = path / "shard-00000.safetensors"
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)
    edit(path, lambda manifest: manifest["shards"][0].update(sha256=sha256_of(shard)))


def test_blocks_yield_every_row_once_in_stored_order_without_crossing_shards(path):
    store = ActivationStore.open(path)
    blocks = [block.rows["left"] for block in store.blocks("train", rows=64)]

    assert [len(block) for block in blocks] == [64, 36] * 3
    stored = [load_file(path / f"shard-0000{n}.safetensors")["left"] for n in range(3)]
    assert torch.equal(torch.cat(blocks), torch.cat(stored))
    assert store.count("train") == 300 and store.count("held_out") == 50


def test_locations_are_none_in_a_store_without_texts(path):
    store = ActivationStore.open(path)

    assert store.sequences() is None
    assert next(iter(store.blocks())).sequence is None


def test_unknown_keys_in_the_manifest_are_ignored(path):
    edit(path, lambda manifest: manifest["sources"][0].update(colour="blue"))

    assert ActivationStore.open(path).sources[0].name == "left"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(version=99), "reads 'crossdiff.activations' versions 1 to 3"),
        (lambda manifest: manifest.pop("shards"), "lacks 'shards'"),
        (lambda manifest: manifest["sources"][0].update(width=7), r"'left' has shape \(100, 12\), expected \(100, 7\)"),
        (lambda manifest: manifest["sources"][0].update(name="middle"), "no tensor 'middle'; it holds left, right"),
        (lambda manifest: manifest["sources"][1].update(dtype="int8"), "dtype 'int8'; known are"),
        (lambda manifest: manifest["shards"][1].update(rows=99), r"expected \(99, 12\)"),
        (lambda manifest: manifest.update(sequences="texts.parquet"), "texts.parquet is missing"),
        (lambda manifest: manifest.update(sources=[]), "lists 0 sources"),
    ],
)
def test_a_manifest_that_does_not_match_the_files_is_rejected(path, change, message):
    edit(path, change)
    with pytest.raises(StoreError, match=message):
        ActivationStore.open(path)


def test_a_missing_shard_is_reported_by_name(path):
    (path / "shard-00002.safetensors").unlink()
    with pytest.raises(StoreError, match=r"shard-00002\.safetensors is missing"):
        ActivationStore.open(path)


def test_a_truncated_shard_is_reported_by_name(path):
    shard = path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(StoreError, match="not a complete safetensors file"):
        ActivationStore.open(path)


def test_a_folder_without_a_manifest_is_rejected(tmp_path):
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        ActivationStore.open(tmp_path)


def test_verify_detects_a_changed_shard_by_its_checksum(path):
    store = ActivationStore.open(path)
    shard = path / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="checksum differs"):
        store.verify()


def test_verify_counts_rows_with_nan_or_infinity(path):
    def spoil(tensors):
        tensors["right"][3, 1], tensors["right"][8, 0] = float("nan"), float("inf")

    rewrite(path, spoil)
    with pytest.raises(StoreError, match="2 of 100 rows of 'right' are NaN or infinite"):
        ActivationStore.open(path).verify()


def test_a_store_of_version_1_is_read_with_current_names(tmp_path):
    store = tiny_store(tmp_path / "now", {})
    former = tmp_path / "former"
    shutil.copytree(store.path, former)
    names = {"sequence": "document", "document": "origin"}
    table = pq.read_table(former / "sequences.parquet")
    table = table.rename_columns([names.get(name, name) for name in table.column_names])
    pq.write_table(table, former / "documents.parquet")
    (former / "sequences.parquet").unlink()
    for shard in store.manifest.shards:
        tensors = load_file(former / shard.file)
        tensors["document"] = tensors.pop("sequence")
        save_file(tensors, former / shard.file)
    edit(former, lambda manifest: manifest.update(version=1, documents="documents.parquet"))
    edit(former, lambda manifest: manifest.pop("sequences"))

    again = ActivationStore.open(former)

    assert again.sequences().equals(store.sequences())
    assert again.sequence_columns() == store.sequence_columns()
    assert again.sequences([2], columns=["document", "sequence"]).to_pylist() == [{"document": 1, "sequence": 2}]
    for block, known in zip(again.blocks(), store.blocks(), strict=True):
        assert torch.equal(block.sequence, known.sequence)
