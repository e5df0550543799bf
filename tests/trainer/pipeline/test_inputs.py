"""A run is its inputs: what has changed in place is read again, and what has not is left alone."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.worlds.tiny_activations import tiny_activations
from tests.worlds.tiny_diff import tiny_diff
from trainer.errors import SourceError, StoreError
from trainer.pipeline.commands import run
from trainer.run.progress import Progress, read_progress


def states(folder):
    return {stage["stage"]: stage["state"] for stage in read_progress(folder)["stages"]}


def rewrite(path: Path, content: bytes) -> None:
    """New content of the same size, with the old modification time: only its content tells."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def retrain(world: Path) -> None:
    path = world / "llama" / "model.safetensors"
    tensors = {name: tensor * 1.25 for name, tensor in load_file(path).items()}
    draft = path.with_name("draft")
    save_file(tensors, draft, {"format": "pt"})
    rewrite(path, draft.read_bytes())
    draft.unlink()


def change_tokenizer(world: Path) -> None:
    path = world / "gemma" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "model_max_length": 4096}))


def change_template(world: Path) -> None:
    (world / "llama" / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")


def replace_text(world: Path) -> None:
    path = world / "texts.jsonl"
    rewrite(path, path.read_bytes().replace(b"the", b"hte"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (retrain, "the model of left"),
        (change_tokenizer, "the model of right"),
        (change_template, "the model of left"),
        (replace_text, "the text of texts"),
    ],
)
def test_what_has_changed_in_place_is_harvested_again_and_named(tmp_path, monkeypatch, capsys, change, named):
    recipe = tiny_diff(tmp_path / "world")
    folder = run(recipe, stages=("harvest", "train"))
    weights = folder.weights.read_bytes()
    change(tmp_path / "world")
    capsys.readouterr()

    assert run(recipe, stages=("harvest", "train")).path == folder.path

    said = capsys.readouterr().err
    assert f"reading the text again, because {named}" in said and "has changed" in said
    assert (states(folder)["harvest"], states(folder)["train"]) == ("done", "done") or change is change_tokenizer
    again = folder.weights.read_bytes()
    monkeypatch.setenv("CROSSDIFF_HOME", str(tmp_path / "elsewhere"))
    assert run(recipe, stages=("harvest", "train")).weights.read_bytes() == again
    assert change is change_tokenizer or again != weights


def test_a_touched_file_is_not_a_changed_one(tmp_path):
    recipe = tiny_diff(tmp_path / "world")
    run(recipe, stages=("harvest",))
    for path in (tmp_path / "world").rglob("*"):
        path.touch()
    assert states(run(recipe, stages=("harvest",)))["harvest"] == "skipped"


def test_a_finished_run_needs_no_model_and_no_text_any_more(tmp_path):
    recipe = tiny_diff(tmp_path / "world")
    run(recipe, stages=("harvest", "train"))
    shutil.rmtree(tmp_path / "world" / "llama")
    (tmp_path / "world" / "texts.jsonl").unlink()
    assert set(states(run(recipe, stages=("harvest", "train"))).values()) == {"skipped", "waiting"}


def test_two_projects_with_the_same_relative_paths_are_two_runs(tmp_path, monkeypatch):
    relative = yaml.safe_load(tiny_diff(tmp_path / "one").read_text())
    for source, model in zip(relative["sources"], ("./llama", "gemma"), strict=True):
        source["model"] = model
    for part in relative["corpus"]["mix"]:
        part["path"] = Path(part["path"]).name
    (tmp_path / "one" / "recipe.yaml").write_text(yaml.safe_dump(relative))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    retrain(tmp_path / "two")

    runs = []
    for project in ("one", "two"):
        monkeypatch.chdir(tmp_path / project)
        runs.append(run(Path("recipe.yaml"), stages=("harvest", "train")))
    assert runs[0].path != runs[1].path
    assert runs[0].weights.read_bytes() != runs[1].weights.read_bytes()

    monkeypatch.chdir(tmp_path)
    again = run(runs[0].recipe, stages=("harvest", "train"))
    assert again.path == runs[0].path and states(again)["harvest"] == "skipped"


def test_text_that_changes_while_it_is_read_ends_the_harvest(tmp_path, monkeypatch):
    recipe = tiny_diff(tmp_path / "world")
    advance = Progress.advance

    def change(progress: Progress, done: int, **measures: float) -> None:
        advance(progress, done, **measures)
        replace_text(tmp_path / "world")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"the text of texts .* has changed"):
        patch.setattr(Progress, "advance", change)
        run(recipe, stages=("harvest",))
    assert states(run(recipe, stages=("harvest",)))["harvest"] == "done"


def test_a_later_stage_refuses_a_model_that_is_not_the_one_harvested(tmp_path):
    recipe = tiny_diff(tmp_path / "world")
    run(recipe, stages=("harvest", "train"))
    retrain(tmp_path / "world")
    with pytest.raises(SourceError, match=r"left: .* but its activations were read at .*--force"):
        run(recipe, stages=("evaluate",))


def test_force_harvests_again_and_trains_each_run_of_a_sweep_once(tmp_path, monkeypatch):
    recipe = tiny_diff(tmp_path / "world", sweep={"training.seed": [0, 1]})
    run(recipe, stages=("harvest", "train"))
    store = next((tmp_path / "crossdiff-home" / "activations").glob("*/manifest.json"))
    began: list[str] = []
    log = Progress.log
    monkeypatch.setattr(Progress, "log", lambda progress, line: (began.append(line), log(progress, line))[1])
    harvested = store.stat().st_mtime_ns

    run(recipe, stages=("harvest", "train"), force=True)

    assert store.stat().st_mtime_ns > harvested
    assert [line for line in began if line.endswith("began")] == ["harvest began", "train began"]


@pytest.mark.parametrize("change", ["rows", "split"])
def test_the_same_recipe_on_another_store_is_another_run(tmp_path, change):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: mine\ncrosscoder: {features: 40}\ntraining: {batch: 64}\n")
    store = tiny_activations(tmp_path / "store")
    shutil.copytree(store.path, tmp_path / "moved")
    shutil.copytree(store.path, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    if change == "split":
        manifest["shards"][0]["split"] = "held_out"
    else:
        shard = tmp_path / "other" / manifest["shards"][0]["file"]
        save_file({name: (x * 2 if x.is_floating_point() else x) for name, x in load_file(shard).items()}, shard)
        from trainer.run.checksum import sha256_of

        manifest["shards"][0]["sha256"] = sha256_of(shard)
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))

    first, moved, other = (
        run(recipe, activations=tmp_path / name, stages=("harvest", "train")) for name in ("store", "moved", "other")
    )

    assert first.path == moved.path != other.path
    assert first.weights.read_bytes() != other.weights.read_bytes()
