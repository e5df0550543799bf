"""What the commands do: run a recipe or its sweep, import a crosscoder, calibrate a finished run."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

from trainer.errors import RecipeError
from trainer.interchange.imported import recipe_of
from trainer.pipeline.run import Run
from trainer.recipe.recipe import load_recipe, parse_recipe
from trainer.run.folder import RunFolder, read_json
from trainer.run.stages import STAGES
from trainer.store.store import ActivationStore
from trainer.training.stage import train_together


def run(
    recipe_path: Path,
    overrides: tuple[str, ...] = (),
    *,
    stages: tuple[str, ...] | None = None,
    activations: Path | None = None,
    force: bool = False,
    anyway: bool = False,
) -> RunFolder:
    """Run a recipe's stages (all by default) and return its folder; for a sweep, the folder of the first run.

    Raises CrossdiffError for errors that the user can correct; the same call resumes where it stopped.
    """
    runs = runs_of(recipe_path, overrides, activations=activations, force=force, anyway=anyway)
    execute(runs, stages or STAGES)
    return runs[0].folder


def runs_of(recipe_path: Path, overrides: tuple[str, ...] = (), **options: Any) -> list[Run]:
    """The runs of a recipe, those of its sweep in order; `options` are those of `Run`. Raises CrossdiffError."""
    recipe = load_recipe(recipe_path, overrides)
    if options.get("activations") is None and (not recipe.sources or recipe.corpus is None):
        raise RecipeError(
            f"{recipe_path}: `sources` and `corpus` are needed to run models. "
            "To train on activations you already have, add --activations DIR."
        )
    # A recipe in a run's folder belongs to that run, even if it lacks settings that were added later.
    own_folder = None if overrides else RunFolder.containing(recipe_path)
    # Of several variants, only the first can be the run whose folder contains the recipe.
    folders = itertools.chain([own_folder], itertools.repeat(None))
    return [Run(variant, folder=folder, **options) for variant, folder in zip(recipe.variants(), folders, strict=False)]


def execute(runs: list[Run], stages: tuple[str, ...] = STAGES) -> None:
    """Run stages of the runs of one recipe, which are trained side by side. Raises CrossdiffError."""
    if len(runs) > 1:
        runs[0].execute(tuple(stage for stage in stages if stage == "harvest"))
        for one in runs[1:]:  # they share its activations
            one.to_redo.discard("harvest")
        if "train" in stages:
            train_side_by_side(runs)
    for one in runs:
        one.execute(stages)


def import_crosscoder(
    path: Path,
    name: str,
    *,
    format: str | None = None,  # noqa: A002
    options: dict[str, Any],
    overrides: tuple[str, ...] = (),
) -> RunFolder:
    """Create a run from another tool's checkpoint and return its folder; it can be evaluated and analysed as any run.

    `options` are those of the format (`trainer.interchange`). Raises CrossdiffError for errors that the user can
    correct.
    """
    recipe = recipe_of(path, name, format=format, options=options, overrides=overrides)
    imported = Run(recipe, force=True)
    imported.execute(("train",))
    return imported.folder


def calibrate_run(folder: RunFolder, overrides: tuple[str, ...] = (), *, force: bool = False) -> None:
    """Calibrate a finished run, with or without `calibration` in its recipe, and publish its results again.

    `overrides` apply to the recipe's `calibration`. Raises CrossdiffError for errors that the user can correct.
    """
    recipe = load_recipe(folder.recipe)
    plain = {} if recipe.calibration is None else recipe.calibration.model_dump(mode="json")
    wanted = parse_recipe({"name": recipe.name, "calibration": plain}, origin="calibration", overrides=overrides)
    pointer = read_json(folder.store)
    store = pointer.get("path") if isinstance(pointer, dict) else None
    has_models = recipe.sources and recipe.corpus is not None
    one = Run(
        recipe,
        activations=None if has_models or store is None else Path(store),
        force=force,
        folder=folder,
        calibration=wanted.calibration,
    )
    one.execute(("calibrate", "analyse"))


def train_side_by_side(runs: list[Run]) -> None:
    """Train the runs of a sweep that are not up to date, reading the rows once for all of them."""
    with contextlib.ExitStack() as stack:
        for one in sorted(runs, key=lambda run: run.folder.run_id):  # in one order, so that no two sweeps block
            stack.enter_context(one.locked())
            one.note_store()  # each is analysed with all the others, the first one too
        untrained = [one for one in runs if one.is_due("train")]
        if not untrained:
            return
        for sharing in _by_batches(untrained):
            _train_on_the_same_batches(sharing, of=len(runs))


def _by_batches(runs: list[Run]) -> list[list[Run]]:
    """The runs in lists that agree on batch and epochs, which may depend on the size of the dictionary."""
    lists: dict[tuple[int, int], list[Run]] = {}
    for one in runs:
        schedule = one.schedule()
        lists.setdefault((schedule.batch, schedule.epochs), []).append(one)
    return list(lists.values())


def _train_on_the_same_batches(runs: list[Run], *, of: int) -> None:
    """Train runs that agree on batch and epochs, of a sweep of so many."""
    first = runs[0]
    first.progress.notify(f"sweep: {len(runs)} of {of} runs are trained side by side")
    with first.progress.running(), first.progress.stage("train"), first.store_held(writing=False):
        first.check_fit(["train"], beside=[one.recipe for one in runs[1:]])
        inputs = [one.fingerprint("train") for one in runs]
        for one in runs:
            one.discard_forced_checkpoints()
            one.write_recipe()
        store = ActivationStore.open(first.store_path())
        train_together([(one.recipe, one.folder) for one in runs], store, first.progress)
    for one, fingerprint in zip(runs, inputs, strict=True):
        one.record("train", fingerprint)
