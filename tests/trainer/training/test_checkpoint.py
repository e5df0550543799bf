"""Checkpoints survive a kill while they are written."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.worlds.forked import fork
from tests.worlds.tiny_activations import tiny_activations, tiny_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.training import checkpoint as checkpoint_module
from trainer.training.stage import train


@pytest.mark.parametrize("moment", ["half of the draft", "the whole draft", "before old ones are deleted"])
def test_a_kill_while_a_checkpoint_is_written_loses_only_the_steps_since_the_last(tmp_path, moment):
    store = tiny_activations(tmp_path / "store")

    def fit(path):
        folder = RunFolder(path)
        path.mkdir(exist_ok=True)
        train(tiny_recipe(), store, folder, Progress(folder, "tiny"))

    def fit_and_die(path):
        die_in_checkpoint(number=4, moment=moment)
        fit(path)

    fit(tmp_path / "whole")
    process = fork(fit_and_die, tmp_path / "killed")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    drafts = list((tmp_path / "killed" / "checkpoints").glob(".*.draft"))
    assert bool(drafts) == ("draft" in moment)

    fit(tmp_path / "killed")

    expected = load_file(tmp_path / "whole" / "crosscoder.safetensors")
    found = load_file(tmp_path / "killed" / "crosscoder.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list((tmp_path / "killed" / "checkpoints").glob(".*")) == []
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def die_in_checkpoint(*, number: int, moment: str) -> None:
    """Make this process kill itself at the given moment of the checkpoint with this number."""
    save, replace = checkpoint_module.save_file, checkpoint_module.Path.unlink
    count = iter(range(1, 1000))

    def save_and_die(tensors, path, metadata):
        save(tensors, path, metadata)
        if next(count) < number or moment == "before old ones are deleted":
            return
        if moment == "half of the draft":
            os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def unlink_or_die(self, **options):
        if self.name.startswith("step-"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(self, **options)

    checkpoint_module.save_file = save_and_die
    if moment == "before old ones are deleted":
        checkpoint_module.Path.unlink = unlink_or_die
