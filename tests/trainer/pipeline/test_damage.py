"""Whatever file of a run is damaged in whatever way, the next `crossdiff run` gives the same findings again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from tests.worlds.tiny_activations import tiny_activations
from tests.worlds.tiny_diff import tiny_diff
from trainer.errors import RunError, StoreError
from trainer.pipeline.commands import run
from trainer.reading import activations
from trainer.run.folder import RunFolder, home
from trainer.run.progress import Progress

Damage = Callable[[Path], object]

DAMAGES: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros at the end": lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2] + bytes(path.stat().st_size - path.stat().st_size // 2)
    ),
    "a list": lambda path: path.write_bytes(b"[]"),
}
PRODUCTS = (
    "manifest.json",
    "shard-00000.safetensors",
    "sequences.parquet",
    "crosscoder.json",
    "crosscoder.safetensors",
    "evaluation.json",
    "baselines.json",
    "current.json",
    "results-*.duckdb",
)
CALIBRATED = """
name: mine
crosscoder: {features: 40, exclusive_share: 0.1, sparsity: {k: 3}}
training: {batch: 64}
calibration: {rows: 1500, amplitudes: [0.8], frequencies: [0.03], per_cell: 2}
"""
RECORDS = ("metrics.jsonl", "stages.json", "recipe.yaml", "progress.json", "activations.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Recipe, finished home and findings of a healthy run."""
    folder = tmp_path_factory.mktemp("healthy")
    recipe = tiny_diff(folder / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSDIFF_HOME", str(folder / "home"))
        return recipe, folder / "home", findings(run(recipe))


@pytest.fixture
def damaged_home(finished, tmp_path, monkeypatch):
    """A copy of the finished home; products are read-only in it, as in the original."""
    shutil.copytree(finished[1], tmp_path / "home", symlinks=True)
    monkeypatch.setenv("CROSSDIFF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def findings(folder: RunFolder) -> dict[str, str]:
    with duckdb.connect(str(folder.results()), read_only=True) as results:
        tables = [name for (name,) in results.sql("select table_name from duckdb_tables()").fetchall() if name != "run"]
        return {table: repr(results.sql(f"from {table} order by all").fetchall()) for table in sorted(tables)}


def damage(folder: Path, pattern: str, kind: str) -> Path:
    path = next(folder.rglob(pattern))
    if path.name.startswith("results-"):  # not the one that was published before
        path = path.with_name(json.loads(path.with_name("current.json").read_text())["file"])
    path.chmod(0o644)
    DAMAGES[kind](path)
    return path


@pytest.mark.parametrize("pattern", PRODUCTS)
def test_a_damaged_product_is_made_again_and_with_it_all_that_hangs_on_it(finished, damaged_home, capsys, pattern):
    recipe, _, expected = finished
    for kind in DAMAGES:
        path = damage(damaged_home, pattern, kind)
        capsys.readouterr()
        assert findings(run(recipe)) == expected, kind
        said = capsys.readouterr().err
        assert pattern == "manifest.json" or path.name in said, f"{kind}: the damage is named in {said!r}"


@pytest.mark.parametrize("pattern", RECORDS)
def test_a_damaged_record_costs_at_most_time(finished, damaged_home, pattern):
    recipe, _, expected = finished
    for kind in DAMAGES:
        damage(damaged_home, pattern, kind)
        assert findings(run(recipe)) == expected, kind


@pytest.mark.parametrize("kind", ["missing", "truncated", "a list"])
def test_a_damaged_calibration_is_made_again(tmp_path, capsys, kind):
    store, recipe = tiny_activations(tmp_path / "store").path, tmp_path / "recipe.yaml"
    recipe.write_text(CALIBRATED)
    folder = run(recipe, activations=store)
    expected = findings(folder)
    DAMAGES[kind](folder.calibration)

    assert findings(run(recipe, activations=store)) == expected
    assert "calibrate: calibration.json is missing or damaged, so it is made again" in capsys.readouterr().err


def folder_there(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def pipe_there(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("instead", [folder_there, pipe_there, link_to_nothing])
@pytest.mark.parametrize("pattern", ["manifest.json", "shard-*", "crosscoder.json", "current.json", "log.txt"])
def test_what_is_no_file_is_made_again_in_a_store_and_refused_in_a_run_until_it_is_removed(
    finished, damaged_home, monkeypatch, pattern, instead
):
    recipe, _, expected = finished
    monkeypatch.setitem(DAMAGES, "instead", instead)
    path = damage(damaged_home, pattern, "instead")
    if path.parent.parent.name == "runs" and instead is not link_to_nothing:
        with pytest.raises(RunError) as refusal:
            run(recipe)
        assert str(refusal.value) == f"{path} is no file. Remove it, and run the same command again."
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert findings(run(recipe)) == expected


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(
    ("pattern", "stage"),
    [
        ("shard-00000.safetensors", "train"),
        ("sequences.parquet", "analyse"),
        ("crosscoder.json", "evaluate"),
        ("crosscoder.safetensors", "analyse"),
        ("evaluation.json", "analyse"),
        ("baselines.json", "analyse"),
    ],
)
def test_a_single_stage_refuses_damaged_inputs_with_a_command_that_heals_them(
    finished, damaged_home, pattern, stage, kind
):
    recipe, _, expected = finished
    damage(damaged_home, pattern, kind)
    with pytest.raises((RunError, StoreError)) as refusal:
        run(recipe, stages=(stage,), force=True)

    message = str(refusal.value)
    if isinstance(refusal.value, RunError):
        *_, command = message.split("crossdiff run ")
        named, _, healing = command.partition(" --stage ")
        run(Path(named), stages=(healing,))
    else:
        assert "harvest" in message
    assert findings(run(recipe)) == expected


@pytest.mark.parametrize("pattern", ["harvest.json", "shard-00000.safetensors", "sequences-00000.parquet"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_an_unfinished_harvest_with_damage_starts_over_and_says_so(finished, monkeypatch, capsys, pattern, kind):
    recipe, *_ = finished
    monkeypatch.setattr(activations, "POOL_ROWS", 400)
    monkeypatch.setattr(activations, "DOCUMENTS_PER_READ", 4)

    def stop(progress: Progress, done: int, **measures: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "advance", stop)
        run(recipe, stages=("harvest",))
    damage(home() / "activations", pattern, kind)
    run(recipe, stages=("harvest",))

    assert "harvest: starting over, because" in capsys.readouterr().err
    store = next((home() / "activations").glob("*/manifest.json"))
    assert json.loads(store.read_text())["rows"] > 2000
    assert not list(store.parent.glob("*.draft"))


def test_a_run_recorded_before_products_had_checksums_is_taken_as_it_is(finished, damaged_home):
    recipe, _, expected = finished
    record = next(damaged_home.rglob("stages.json"))
    old = {stage: entry["inputs"] for stage, entry in json.loads(record.read_text()).items()}
    record.write_text(json.dumps(old))
    weights = next(damaged_home.rglob("crosscoder.safetensors"))
    before = weights.stat().st_mtime_ns

    assert findings(run(recipe)) == expected
    assert weights.stat().st_mtime_ns == before
