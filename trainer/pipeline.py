"""Runs the stages of a recipe in order, and skips those whose inputs have not changed."""

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from trainer.analysis.claims.stability import other_runs
from trainer.analysis.per_feature.logit_effects import Unembedding
from trainer.analysis.stage import analyse
from trainer.baselines import stage as baselines
from trainer.calibration.stage import calibrate
from trainer.crosscoder.crosscoder import Crosscoder, check_sources
from trainer.device import measuring_device
from trainer.errors import RecipeError, StoreError
from trainer.evaluation.fidelity import fidelity, obstacle
from trainer.evaluation.reconstruction import evaluate
from trainer.harvest import Harvest
from trainer.interchange.imported import crosscoder_of, recipe_of
from trainer.models.source import Source, load_source, truncate_after
from trainer.reading.stream import ActivationStream
from trainer.recipe.measuring import CalibrationRecipe
from trainer.recipe.recipe import Recipe, load_recipe, parse_recipe
from trainer.resources.free import check_fit
from trainer.results.columns import SCHEMA
from trainer.run.checksum import sha256_of
from trainer.run.folder import RunFolder, atomic_write, discard, home, write_json
from trainer.run.progress import Progress
from trainer.run.stages import STAGES
from trainer.store.store import ActivationStore
from trainer.training.stage import fingerprint_of, train, train_streaming, train_together

EVALUATION_KEYS: dict[str, Any] = {
    "evaluation": True,
    "baselines": {"lens", "divergence", "sequences"},
    "analysis": {"same_space", "logits"},
}
"""Recipe settings that the evaluate stage depends on, besides the crosscoder and the rows."""
UNJUDGED_KEYS = ("contexts", "logits", "neighbours")
"""Settings of the analysis that no verdict depends on."""


class Run:
    """The stages of one run, with its folder, its store and the record of finished stages."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        activations: Path | None = None,
        force: bool = False,
        anyway: bool = False,
        folder: RunFolder | None = None,
        calibration: CalibrationRecipe | None = None,
    ) -> None:
        """With `activations`, the rows come from an existing store, and nothing is harvested.

        `folder` defaults to the recipe's own; `calibration` replaces the recipe's. Writes the resolved recipe.
        """
        self.recipe, self.activations, self.force, self.anyway = recipe, activations, force, anyway
        self.calibration = calibration or recipe.calibration
        self.folder = folder or RunFolder.for_recipe(recipe)
        self._verified: set[Path] = set()
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder.recipe) as draft:
            draft.write_text(recipe.to_yaml(), encoding="utf-8")
        self.progress = Progress(self.folder, recipe.name)

    def execute(self, stages: tuple[str, ...]) -> None:
        """Run the given stages in order; earlier stages must be up to date."""
        work: dict[str, Callable[[], None]] = {
            "harvest": self._harvest,
            "train": self._train,
            "evaluate": self._evaluate,
            "calibrate": self._calibrate,
            "analyse": self._analyse,
        }
        with self.progress.running():
            self.check_fit(self._due_stages(stages))
            for name, stage in work.items():
                if name not in stages:
                    continue
                if not self._is_due(name):
                    self.progress.skip(name)
                    continue
                with self.progress.stage(name):
                    stage()
                self._mark_finished(name, self._fingerprint(name))

    def check_fit(self, stages: Collection[str], beside: Sequence[Recipe] = ()) -> None:
        """Warn of stages that may not fit this machine. Raises DoesNotFit for those that cannot; see `check_fit`."""
        store = self._store_or_none()
        check_fit(self.recipe, stages, store, warn=self.progress.notify, anyway=self.anyway, beside=beside)

    def _due_stages(self, stages: tuple[str, ...]) -> list[str]:
        """The given stages from the first one that is not up to date on; later ones may depend on it."""
        wanted = [name for name in STAGES if name in stages]
        return list(itertools.dropwhile(lambda name: not self._is_due(name), wanted))

    def _is_due(self, stage: str) -> bool:
        if stage == "calibrate" and self.calibration is None:
            return False
        return self.force or not self._finished(stage, self._fingerprint(stage))

    def is_trained(self) -> bool:
        """Whether the crosscoder exists and is up to date."""
        return self._finished("train", self._fingerprint("train"))

    def mark_trained(self) -> None:
        """Record that the crosscoder was trained with the current inputs."""
        self._mark_finished("train", self._fingerprint("train"))

    def store_path(self) -> Path:
        """Folder of the activation store; runs with the same sources, corpus and harvest settings share one."""
        return self.activations or home() / "activations" / self._harvest_fingerprint()

    def _harvest_fingerprint(self) -> str:
        """Hash of the sources, the corpus and the harvest settings; independent of the crosscoder."""
        identity = self.recipe.identity()
        return _digest({part: identity[part] for part in ("sources", "corpus", "harvest")})

    def _fingerprint(self, stage: str) -> str:
        """Hash of everything that a stage reads; empty if training has no store yet."""
        if stage == "harvest":
            return str(self.activations) if self.activations else self._harvest_fingerprint()
        store = self._store_or_none()
        if stage == "train" and self.recipe.imported is not None:
            return _digest(self.recipe.imported.model_dump(mode="json"))
        if stage == "train":
            return "" if store is None else fingerprint_of(self.recipe, store)
        measured = (self.folder.evaluation, self.folder.baselines) if stage == "analyse" else ()
        files = [self.folder.weights, *measured]
        sums = [sha256_of(part) if part.is_file() else "" for part in files]
        if self.recipe.imported is not None and store is not None:
            # A crosscoder trained here belongs to one store; an imported one may be measured on several.
            sums += [shard.sha256 for shard in store.manifest.shards]
        wanted: list[Any] = [self.recipe.model_dump(mode="json", include=EVALUATION_KEYS)]
        if stage == "analyse" and self.folder.calibration.is_file():
            sums.append(sha256_of(self.folder.calibration))
        if stage == "analyse":
            sums += [sha256_of(other.weights) for other in other_runs(self.folder) if other.weights.is_file()]
            wanted = [self.recipe.identity()["analysis"], SCHEMA.read_text()]
        if stage == "calibrate" and self.calibration is not None:
            analysis = self.recipe.identity()["analysis"]
            criteria = {key: value for key, value in analysis.items() if key not in UNJUDGED_KEYS}
            wanted = [criteria, self.calibration.model_dump(mode="json")]
        return _digest([sums, wanted, self._fingerprint("train")])

    def _finished(self, stage: str, fingerprint: str) -> bool:
        product = {
            "harvest": self.store_path() / "manifest.json",
            "train": self.folder.crosscoder,
            "evaluate": self.folder.evaluation,
            "calibrate": self.folder.calibration,
            "analyse": self.folder.current,
        }[stage]
        return product.is_file() and self.folder.finished_stages().get(stage) == fingerprint != ""

    def _mark_finished(self, stage: str, fingerprint: str) -> None:
        write_json(self.folder.stages, self.folder.finished_stages() | {stage: fingerprint})

    def _harvest(self) -> None:
        path = self.store_path()
        write_json(self.folder.store, {"path": str(path)})
        if (path / "manifest.json").is_file():
            ActivationStore.open(path)
            return
        if self.activations is not None:
            raise StoreError(f"No activation store at {path}: manifest.json is missing. Give the folder that has it.")
        Harvest(self.recipe, self._load_truncated_models(), path, self._harvest_fingerprint()).run(self.progress)

    def _train(self) -> None:
        if self.recipe.imported is not None:
            crosscoder_of(self.recipe.imported).save(self.folder.path)
            return
        store = ActivationStore.open(self.store_path())
        if self.activations is not None:
            store.verify()
        if self.recipe.harvest.stream is not None and self.activations is None:
            stream = ActivationStream(self.recipe, store, self._load_truncated_models, self.progress)
            train_streaming(self.recipe, store, self.folder, stream, self.progress)
        else:
            train(self.recipe, store, self.folder, self.progress)

    def _crosscoder(self) -> Crosscoder:
        """The trained crosscoder, on the device that it is measured on."""
        return Crosscoder.load(self.folder.path).to(measuring_device(self.recipe.training.device))

    def _evaluate(self) -> None:
        crosscoder = self._crosscoder()
        store = self._store_for(crosscoder)
        measures = evaluate(store, crosscoder, self.progress)
        sequences = self.recipe.evaluation.sequences
        names = [source.name for source in self.recipe.sources]
        fidelity_obstacle = obstacle(store, crosscoder, names, sequences)
        baselines_obstacle = baselines.obstacle(self.recipe, store, names)
        sources = self._load_models() if fidelity_obstacle is None or baselines_obstacle is None else []
        if fidelity_obstacle is None:
            measures += fidelity(store, crosscoder, sources, sequences=sequences, progress=self.progress)
        else:
            self.progress.notify(f"evaluate: the models' own loss is not measured, because {fidelity_obstacle}")
        # Measured here, because the models are loaded; baselines use the crosscoder only to find sources of one space.
        if baselines_obstacle is None:
            tables = baselines.measure_baselines(self.recipe, store, crosscoder, sources, self.progress)
        else:
            self.progress.notify(f"evaluate: the models are not compared directly, because {baselines_obstacle}")
            tables = baselines.unmeasured(self.recipe, baselines_obstacle)
        write_json(self.folder.baselines, tables)
        write_json(self.folder.evaluation, measures)

    def _calibrate(self) -> None:
        assert self.calibration is not None, "without calibration the stage is skipped"
        if self.force:  # as for training, start from the first step
            discard(self.folder.calibration_work)
        crosscoder = self._crosscoder()
        store = self._store_for(crosscoder)
        calibrate(self.recipe, self.calibration, store, crosscoder, folder=self.folder, progress=self.progress)

    def _analyse(self) -> None:
        crosscoder = self._crosscoder()
        unembeddings = {source.name: Unembedding.from_source(source) for source in self._load_models()}
        store = self._store_for(crosscoder)
        analyse(self.recipe, store, crosscoder, folder=self.folder, progress=self.progress, unembeddings=unembeddings)

    def _load_truncated_models(self) -> list[Source]:
        """The models without the blocks after their hookpoints."""
        return [truncate_after(source, source.recipe.layer) for source in self._load_models()]

    def _load_models(self) -> list[Source]:
        """The whole models; empty if the recipe has no sources."""
        return [load_source(source) for source in self.recipe.sources]

    def _store(self) -> ActivationStore:
        return ActivationStore.open(self.store_path())

    def _store_for(self, crosscoder: Crosscoder) -> ActivationStore:
        """The store to measure a crosscoder on; for an imported one, an external store is verified once."""
        store = self._store()
        check_sources(crosscoder, store.widths, store.path)
        if self.recipe.imported is not None and self.activations is not None and store.path not in self._verified:
            store.verify()
            self._verified.add(store.path)
        return store

    def _store_or_none(self) -> ActivationStore | None:
        return self._store() if (self.store_path() / "manifest.json").is_file() else None


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
    recipe = load_recipe(recipe_path, overrides)
    if activations is None and (not recipe.sources or recipe.corpus is None):
        raise RecipeError(
            f"{recipe_path}: `sources` and `corpus` are needed to run models. "
            "To train on activations you already have, add --activations DIR."
        )
    # A recipe in a run's folder belongs to that run, even if it lacks settings that were added later.
    own_folder = None if overrides else RunFolder.containing(recipe_path)
    # Of several variants, only the first can be the run whose folder contains the recipe.
    folders = itertools.chain([own_folder], itertools.repeat(None))
    runs = [
        Run(variant, activations=activations, force=force, anyway=anyway, folder=folder)
        for variant, folder in zip(recipe.variants(), folders, strict=False)
    ]
    wanted = stages or STAGES
    if force and "train" in wanted:
        for one in runs:  # start from the first step, not from the last checkpoint
            discard(one.folder.checkpoints)
    if len(runs) > 1:
        runs[0].execute(tuple(stage for stage in wanted if stage == "harvest"))
        if "train" in wanted:
            train_side_by_side(runs)
    for one in runs:
        one.execute(wanted)
    return runs[0].folder


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
    store = json.loads(folder.store.read_text(encoding="utf-8"))["path"] if folder.store.is_file() else None
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
    untrained = [run for run in runs if run.force or not run.is_trained()]
    if not untrained:
        return
    store = ActivationStore.open(runs[0].store_path())
    untrained[0].progress.notify(f"sweep: {len(untrained)} of {len(runs)} runs are trained side by side")
    with untrained[0].progress.running(), untrained[0].progress.stage("train"):
        untrained[0].check_fit(["train"], beside=[run.recipe for run in untrained[1:]])
        train_together([(run.recipe, run.folder) for run in untrained], store, untrained[0].progress)
    for run in untrained:
        run.mark_trained()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
