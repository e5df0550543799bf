"""Progress: what the home page and the terminal are told of the time that a task will take."""

import pytest

from trainer.run import progress as progress_module
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress, read_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def told(folder):
    state = read_progress(folder)
    return state["done"], state["rate"], state["seconds_left"]


def test_before_anything_is_done_nothing_is_said_of_the_time_left(tmp_path, clock):
    folder = RunFolder(tmp_path)
    with Progress(folder, "tiny").task("harvest", total=1000) as task:
        assert told(folder) == (0, None, None)
        clock[0] += 20
        task.advance(0)
        assert told(folder) == (0, None, None)
        clock[0] += 20
        task.advance(400)
        assert told(folder) == (400, 10.0, 60.0)


def test_what_an_earlier_run_did_counts_as_done_and_not_as_fast(tmp_path, clock, capsys):
    folder = RunFolder(tmp_path)
    with Progress(folder, "tiny").task("train", total=1000, unit="steps", before=800) as task:
        assert told(folder) == (800, None, None)
        clock[0] += 20
        task.advance(100)
        assert told(folder) == (900, 5.0, 20.0)
    assert capsys.readouterr().err == "train: 900 of 1,000 steps (5/s, 20 s left)\n"
