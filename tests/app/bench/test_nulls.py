"""A model against copies of itself: the runs are real ones, and what is counted is what they published."""

from pathlib import Path

import pytest

from app.bench.nulls import bench_nulls
from tests.worlds.tiny_diff import result_rows, tiny_diff
from trainer.errors import UsageError
from trainer.run.folder import RunFolder

SETTINGS = ("crosscoder.residual={features: 16, k: 2, trainings: 2}", "crosscoder.features=32")


def test_every_null_is_run_and_its_claims_are_counted_by_owner(tmp_path: Path, own_home: Path):
    report = bench_nulls(tiny_diff(tmp_path), SETTINGS, kinds=["8bit", "merges"], sources=["left"])

    counts = report.figures["nulls"]
    assert [(one["null"], one["owner"]) for one in counts] == [
        (f"left, {kind}", owner) for kind in ("8bit", "merges") for owner in ("left", f"left-{kind}")
    ]
    for kind in ("8bit", "merges"):
        (folder,) = (own_home / "runs").glob(f"null-left-{kind}-*")
        query = (
            "select owner, count(*) from feature where verdict in ('supported', 'refuted', 'undecided') group by owner"
        )
        published = dict(result_rows(RunFolder(folder), query))
        assert {
            one["owner"]: one["claims"] for one in counts if one["null"].endswith(kind) and one["claims"]
        } == published
    # Weights rounded to eight bits leave more to tell of each other than other tokens do.
    told = {one["null"]: one["told"] for one in counts}
    assert 0.2 < told["left, merges"] < told["left, 8bit"] <= 1
    assert report.rows[0][:2] == ("left, 8bit", "left")


def test_an_unknown_null_or_source_is_refused_with_those_that_there_are(tmp_path: Path, own_home: Path):
    recipe = tiny_diff(tmp_path)
    with pytest.raises(UsageError, match=r"No null is named 'foo'\. There are 8bit, 4bit, merges"):
        bench_nulls(recipe, kinds=["foo"])
    with pytest.raises(UsageError, match=r"No source is named 'middle'\. There are left, right"):
        bench_nulls(recipe, sources=["middle"])
    assert not (own_home / "runs").exists()
