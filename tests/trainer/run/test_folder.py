"""Files are written atomically, and a full disk gives a clear error."""

import subprocess

import pytest
import torch
from safetensors.torch import save_file

from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.errors import DiskFull
from trainer.run.folder import atomic_write, write_json
from trainer.training.checkpoint import latest
from trainer.training.stage import fingerprint_of
from trainer.training.trainer import Training


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_failed_write_keeps_the_previous_file_and_leaves_no_draft(tmp_path):
    (tmp_path / "file").write_text("before")

    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "file") as draft:
        draft.write_text("half")
        raise ZeroDivisionError

    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_leftover_draft_of_a_killed_process_is_replaced(tmp_path):
    (tmp_path / ".file.draft").write_text("half of long ago")

    write_json(tmp_path / "file", {"a": 1})

    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("library", ["plain", "safetensors"])
def test_a_full_disk_is_reported_whichever_library_writes(small_disk, library):
    with pytest.raises(DiskFull, match="Free some room"), atomic_write(small_disk / "big") as draft:
        if library == "plain":
            draft.write_bytes(bytes(10**6))
        else:
            save_file({"x": torch.zeros(10**6)}, draft)

    assert not list(small_disk.iterdir())


def test_a_full_disk_during_a_checkpoint_keeps_the_previous_one(small_disk, tmp_path):
    recipe, store = tiny_recipe(), tiny_activations(tmp_path / "store")
    training = Training(recipe, store)
    fingerprint = fingerprint_of(recipe, store)
    for rows in training.remaining_batches():
        training.run_step(rows)
        if training.step == 2:
            training.save(small_disk, fingerprint)
            filler = 256 * 1024 - sum(file.stat().st_size for file in small_disk.iterdir()) - 8192
            (small_disk / "filler").write_bytes(bytes(filler))
        if training.step == 4:
            break

    with pytest.raises(DiskFull):
        training.save(small_disk, fingerprint)

    kept = latest(small_disk, fingerprint)
    assert kept is not None and kept.step == 2
