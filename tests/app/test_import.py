"""A crosscoder that another tool trained becomes a run: measured, analysed and exported like one of ours."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from app.cli import main
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.store.store import ActivationStore, StoredSource, StoreWriter

WIDTH, FEATURES, SCALES = 6, 10, (0.5, 2.0)


def crossdiff(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="crossdiff")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Checkpoint files as ckkissane's training code writes them, with random weights."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (2, WIDTH, FEATURES), "W_dec": (FEATURES, 2, WIDTH), "b_enc": (FEATURES,), "b_dec": (2, WIDTH)}
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.save(
        {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        folder / "cc_weights.pt",
    )
    (folder / "cfg.json").write_text(json.dumps({"d_in": WIDTH, "dict_size": FEATURES}))
    return folder


def store_at(path: Path, seed: int = 0, names: tuple[str, str] = ("base", "tuned")) -> ActivationStore:
    generator = torch.Generator().manual_seed(seed)
    writer = StoreWriter(path, tuple(StoredSource(name, WIDTH, "float32") for name in names))
    for split, count in (("train", 40), ("held_out", 60)):
        writer.add({name: torch.randn(count, WIDTH, generator=generator) for name in names}, {}, split)
    writer.finish(None, {})
    return ActivationStore.open(path)


def imported(theirs: Path, *more: object) -> Path:
    named = ("--source", "base", "--source", "tuned", "--scale", SCALES[0], "--scale", SCALES[1])
    outcome = crossdiff("import", theirs, "--name", "theirs", *named, *more)
    assert outcome.exit_code == 0, outcome.output
    return Path(outcome.stdout.strip())


def explained_by_their_formula(theirs: Path, rows: dict[str, torch.Tensor]) -> dict[str, float]:
    """relu(sum over sources of scale x W_enc + b_enc) W_dec + b_dec, undone by the scale, in double precision."""
    w = {name: tensor.double() for name, tensor in torch.load(theirs / "cc_weights.pt", weights_only=True).items()}
    x = torch.stack([rows[name].double() * scale for name, scale in zip(rows, SCALES, strict=True)], dim=1)
    codes = torch.relu(torch.einsum("rsw,swf->rf", x, w["W_enc"]) + w["b_enc"])
    back = torch.einsum("rf,fsw->rsw", codes, w["W_dec"]) + w["b_dec"]
    found = {}
    for place, (name, scale) in enumerate(zip(rows, SCALES, strict=True)):
        raw = rows[name].double()
        error = raw - back[:, place] / scale
        found[name] = float(1 - error.square().sum() / (raw - raw.mean(dim=0)).square().sum())
    return found


def measured(folder: Path) -> dict[str, float]:
    measures = json.loads((folder / "evaluation.json").read_text())
    return {one["source"]: one["value"] for one in measures if one["measure"] == "variance_explained"}


def states(folder: Path) -> dict[str, str]:
    return {one["stage"]: one["state"] for one in json.loads((folder / "progress.json").read_text())["stages"]}


def test_an_imported_crosscoder_is_measured_and_analysed_and_goes_out_again(theirs: Path, tmp_path: Path):
    store = store_at(tmp_path / "store")
    folder = imported(theirs)

    outcome = crossdiff("run", folder / "recipe.yaml", "--activations", store.path)

    assert outcome.exit_code == 0, outcome.output
    assert Path(outcome.stdout.strip()) == folder
    expected = {"harvest": "skipped", "train": "skipped", "evaluate": "done", "calibrate": "skipped", "analyse": "done"}
    assert states(folder) == expected
    (block,) = store.blocks("held_out")
    # Products of the encoder run in bfloat16.
    assert measured(folder) == pytest.approx(explained_by_their_formula(theirs, block.rows), abs=0.02)
    (line,) = crossdiff("runs").stdout.splitlines()
    assert line.startswith(folder.name) and "finished" in line and "base" in line

    assert crossdiff("export", folder.name, tmp_path / "out", "--format", "ckkissane").exit_code == 0
    before = torch.load(theirs / "cc_weights.pt", weights_only=True)
    after = torch.load(tmp_path / "out" / "cc_weights.pt", weights_only=True)
    assert {name: tensor.tolist() for name, tensor in after.items()} == {n: t.tolist() for n, t in before.items()}


def test_evaluate_and_analyse_by_themselves_take_a_store_too(theirs: Path, tmp_path: Path):
    folder, one, other = imported(theirs), store_at(tmp_path / "one"), store_at(tmp_path / "other", seed=1)

    for store in (one, other):
        assert crossdiff("evaluate", folder / "recipe.yaml", "--activations", store.path).exit_code == 0
        (block,) = store.blocks("held_out")
        assert measured(folder) == pytest.approx(explained_by_their_formula(theirs, block.rows), abs=0.02)
    assert crossdiff("analyse", folder / "recipe.yaml", "--activations", other.path).exit_code == 0

    assert (folder / "current.json").is_file()


def test_importing_twice_gives_one_run_and_another_option_another(theirs: Path):
    again = imported(theirs), imported(theirs)
    with_threshold = imported(theirs, "--set", "analysis.logits=3")

    assert again[0] == again[1] != with_threshold


def test_a_recipe_written_before_a_key_was_there_still_belongs_to_its_run(theirs: Path, tmp_path: Path, own_home: Path):
    folder = imported(theirs)
    lines = (folder / "recipe.yaml").read_text().splitlines(keepends=True)
    (folder / "recipe.yaml").write_text(
        "".join(line for line in lines if "damp_above" not in line and "logits" not in line)
    )
    store = store_at(tmp_path / "store")

    outcome = crossdiff("evaluate", folder / "recipe.yaml", "--activations", store.path)

    assert outcome.exit_code == 0, outcome.output
    assert (folder / "evaluation.json").is_file()
    assert [path.name for path in (own_home / "runs").iterdir()] == [folder.name]
    assert crossdiff("evaluate", folder / "recipe.yaml", "--set", "analysis.logits=3").exit_code != 0, "another run"


def test_training_never_replaces_what_was_imported(theirs: Path, tmp_path: Path):
    folder = imported(theirs)
    weights = (folder / "crosscoder.safetensors").read_bytes()
    arguments = ("train", folder / "recipe.yaml", "--activations", store_at(tmp_path / "store").path, "--force")

    assert crossdiff(*arguments).exit_code == 0
    assert (folder / "crosscoder.safetensors").read_bytes() == weights
    changed = torch.load(theirs / "cc_weights.pt", weights_only=True)
    torch.save(changed | {"b_enc": changed["b_enc"] + 1}, theirs / "cc_weights.pt")
    outcome = crossdiff(*arguments)

    assert outcome.exit_code == 1
    assert "is not the file this run was made from" in outcome.stderr
    assert (folder / "crosscoder.safetensors").read_bytes() == weights


def test_a_store_with_other_sources_is_refused_with_both_lists(theirs: Path, tmp_path: Path):
    folder, store = imported(theirs), store_at(tmp_path / "store", names=("base", "chat"))

    outcome = crossdiff("evaluate", folder / "recipe.yaml", "--activations", store.path)

    assert outcome.exit_code == 1
    assert "needs base (width 6), tuned (width 6)" in outcome.stderr
    assert "holds base (width 6), chat (width 6)" in outcome.stderr


def test_a_damaged_store_is_found_before_anything_is_measured_on_it(theirs: Path, tmp_path: Path):
    folder, store = imported(theirs), store_at(tmp_path / "store")
    shard = store.path / store.manifest.shards[1].file
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)

    outcome = crossdiff("analyse", folder / "recipe.yaml", "--activations", store.path)

    assert outcome.exit_code == 1
    assert f"{shard}: checksum differs" in outcome.stderr


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.place,)


@pytest.mark.parametrize("damage", ["truncated", "pickled", "misshapen", "missing"])
def test_a_file_that_cannot_be_read_leaves_no_run_and_says_why(
    theirs: Path, tmp_path: Path, own_home: Path, damage: str
):
    file = theirs / "cc_weights.pt"
    whole = torch.load(file, weights_only=True)
    match damage:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-100])
        case "pickled":
            file.write_bytes(pickle.dumps({"W_enc": Bomb(tmp_path / "boom")}))
        case "misshapen":
            torch.save(whole | {"W_dec": whole["W_dec"][:, :, 1:]}, file)
        case _:
            torch.save({name: tensor for name, tensor in whole.items() if name != "b_dec"}, file)
    said = {
        "truncated": "is truncated or no tensor file",
        "pickled": "is refused: opening it could run code",
        "misshapen": "tensor 'W_dec' has shape [10, 2, 5], expected [10, 2, 6]",
        "missing": "lacks tensor 'b_dec' of shape [2, 6]",
    }

    outcome = crossdiff("import", theirs, "--name", "theirs")

    assert outcome.exit_code == 1
    assert said[damage] in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "boom").exists()
    assert not (own_home / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--name", "Theirs!"), 2, "name:"),
        (("--name", "theirs", "--format", "crosscodes"), 1, "No format is named 'crosscodes'"),
        (("--name", "theirs", "--threshold", "3"), 1, "ckkissane has no option 'threshold' here"),
        (("--name", "theirs", "--source", "base"), 1, "has 2 sources, not base"),
        (("--name", "theirs", "--set", "analysis.logit=3"), 2, "Did you mean 'logits'?"),
        ((), 2, "Missing option '--name'"),
    ],
)
def test_a_wrong_option_is_named(
    theirs: Path, own_home: Path, arguments: tuple[str, ...], exit_code: int, message: str
):
    outcome = crossdiff("import", theirs, *arguments)

    assert outcome.exit_code == exit_code
    assert message in outcome.stderr
    assert not (own_home / "runs").exists()


def test_a_run_of_ours_can_be_handed_to_another_machine(theirs: Path, tmp_path: Path):
    folder = imported(theirs)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("crosscoder.json", "crosscoder.safetensors"):
        (copy / name).write_bytes((folder / name).read_bytes())

    outcome = crossdiff("import", copy, "--name", "handed-over")

    assert outcome.exit_code == 0, outcome.output
    there, here = Crosscoder.load(Path(outcome.stdout.strip())), Crosscoder.load(folder)
    assert all(torch.equal(there.weights[name], weight) for name, weight in here.weights.items())
