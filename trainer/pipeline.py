"""Commands: the stages of a run in order, each skipped when its inputs have not changed."""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.analysis.claims.stability import other_runs
from trainer.analysis.per_feature.logit_effects import Unembedding
from trainer.analysis.stage import analyse
from trainer.baselines import stage as baselines
from trainer.calibration.stage import calibrate
from trainer.crosscoder.crosscoder import Crosscoder, check_sources
from trainer.errors import RecipeError, StoreError
from trainer.evaluation.fidelity import fidelity, obstacle
from trainer.evaluation.reconstruction import evaluate
from trainer.harvest import Harvest
from trainer.interchange.imported import crosscoder_of, recipe_of
from trainer.models.source import Source, cut, load_source
from trainer.reading.stream import Stream
from trainer.recipe.measuring import CalibrationRecipe
from trainer.recipe.recipe import Recipe, load_recipe, parse_recipe
from trainer.resources.doctor import require_room
from trainer.results.draft import SCHEMA
from trainer.run.folder import RunFolder, discard, home, published, write_json
from trainer.run.progress import Progress
from trainer.run.stages import STAGES
from trainer.store.store import ActivationStore, sha256_of
from trainer.training.stage import fingerprint_of, train, train_streaming, train_together

MEASURED: dict[str, Any] = {
    "evaluation": True,
    "baselines": {"lens", "divergence", "sequences"},
    "analysis": {"same_space", "logits"},
}
"""Parts of the recipe that decide what evaluating gives, besides the crosscoder and the rows."""


class Run:
    """One run of a recipe: knows its folder, its store and which stages are up to date."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        activations: Path | None = None,
        force: bool = False,
        folder: RunFolder | None = None,
        calibration: CalibrationRecipe | None = None,
    ) -> None:
        """With `activations` the rows come from a store that something else wrote, and no model is run.

        The folder is that of the recipe unless another is given; `calibration` stands in for the recipe's.
        """
        self.recipe, self.activations, self.force = recipe, activations, force
        self.calibration = calibration or recipe.calibration
        self.folder = folder or RunFolder.of(recipe)
        self._looked_through: set[Path] = set()
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with published(self.folder.recipe) as draft:
            draft.write_text(recipe.to_yaml(), encoding="utf-8")
        self.progress = Progress(self.folder, recipe.name)

    def execute(self, stages: tuple[str, ...]) -> None:
        """Run these stages in order; those before them must be up to date."""
        work: dict[str, Callable[[], None]] = {
            "harvest": self._harvest,
            "train": self._train,
            "evaluate": self._evaluate,
            "calibrate": self._calibrate,
            "analyse": self._analyse,
        }
        with self.progress.running():
            require_room(self.recipe, self._due(stages), self._store_or_none())
            for name, stage in work.items():
                if name not in stages:
                    continue
                if not self._is_due(name):
                    self.progress.skip(name)
                    continue
                with self.progress.stage(name):
                    stage()
                self._mark(name, self._fingerprint(name))

    def _due(self, stages: tuple[str, ...]) -> list[str]:
        """Those of some stages that have something to do; whatever follows one that has may have, too."""
        wanted = [name for name in STAGES if name in stages]
        return list(itertools.dropwhile(lambda name: not self._is_due(name), wanted))

    def _is_due(self, stage: str) -> bool:
        if stage == "calibrate" and self.calibration is None:
            return False
        return self.force or not self._finished(stage, self._fingerprint(stage))

    def is_trained(self) -> bool:
        """Whether the crosscoder is there and up to date."""
        return self._finished("train", self._fingerprint("train"))

    def mark_trained(self) -> None:
        """Note that the crosscoder was fitted to what is there now."""
        self._mark("train", self._fingerprint("train"))

    def store_path(self) -> Path:
        """Where the activations lie: runs with the same sources, corpus and amount share a store."""
        return self.activations or home() / "activations" / self._harvest_fingerprint()

    def _harvest_fingerprint(self) -> str:
        """Changes when the sources, the corpus or the amount to harvest change; not with what is fitted to it."""
        identity = self.recipe.identity()
        return _digest({part: identity[part] for part in ("sources", "corpus", "harvest")})

    def _fingerprint(self, stage: str) -> str:
        """Changes when anything that a stage reads changes."""
        if stage == "harvest":
            return str(self.activations) if self.activations else self._harvest_fingerprint()
        store = self._store_or_none()
        if stage == "train" and self.recipe.imported is not None:
            return _digest(self.recipe.imported.model_dump(mode="json"))
        if stage == "train":
            return "" if store is None else fingerprint_of(self.recipe, store)
        measured = (self.folder.evaluation, self.folder.baselines) if stage == "analyse" else ()
        parts = [self.folder.weights, *measured]
        sums = [sha256_of(part) if part.is_file() else "" for part in parts]
        if self.recipe.imported is not None and store is not None:
            # A crosscoder trained here belongs to one store; one from elsewhere may be held against several.
            sums += [shard.sha256 for shard in store.manifest.shards]
        wanted: list[Any] = [self.recipe.model_dump(mode="json", include=MEASURED)]
        if stage == "analyse" and self.folder.calibration.is_file():
            sums.append(sha256_of(self.folder.calibration))
        if stage == "analyse":
            sums += [sha256_of(other.weights) for other in other_runs(self.folder) if other.weights.is_file()]
            wanted = [self.recipe.analysis.model_dump(mode="json"), SCHEMA.read_text()]
        if stage == "calibrate" and self.calibration is not None:
            judging = self.recipe.analysis.model_dump(mode="json", exclude={"contexts", "logits", "neighbours"})
            wanted = [judging, self.calibration.model_dump(mode="json")]
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

    def _mark(self, stage: str, fingerprint: str) -> None:
        write_json(self.folder.stages, self.folder.finished_stages() | {stage: fingerprint})

    def _harvest(self) -> None:
        path = self.store_path()
        write_json(self.folder.store, {"path": str(path)})
        if (path / "manifest.json").is_file():
            ActivationStore.open(path)
            return
        if self.activations is not None:
            raise StoreError(f"No activation store at {path}: manifest.json is missing. Give the folder that has it.")
        Harvest(self.recipe, self._readers(), path, self._harvest_fingerprint()).run(self.progress)

    def _train(self) -> None:
        if self.recipe.imported is not None:
            crosscoder_of(self.recipe.imported).save(self.folder.path)
            return
        store = ActivationStore.open(self.store_path())
        if self.activations is not None:
            store.verify()
        if self.recipe.harvest.stream is not None and self.activations is None:
            stream = Stream(self.recipe, store, self._readers, self.progress)
            train_streaming(self.recipe, store, self.folder, stream, self.progress)
        else:
            train(self.recipe, store, self.folder, self.progress)

    def _evaluate(self) -> None:
        crosscoder = Crosscoder.load(self.folder.path)
        store = self._store_for(crosscoder)
        measures = evaluate(store, crosscoder, self.progress)
        sequences = self.recipe.evaluation.sequences
        names = [source.name for source in self.recipe.sources]
        reason = obstacle(store, crosscoder, names, sequences)
        without = baselines.obstacle(self.recipe, store, names)
        sources = self._loaded() if reason is None or without is None else []
        if reason is None:
            measures += fidelity(store, crosscoder, sources, sequences=sequences, progress=self.progress)
        else:
            self.progress.say(f"evaluate: the models' own loss is not measured, because {reason}")
        # Here, because the models are loaded; of the crosscoder they only ask which sources share a space.
        if without is None:
            tables = baselines.measure_baselines(self.recipe, store, crosscoder, sources, self.progress)
        else:
            self.progress.say(f"evaluate: the models are not compared directly, because {without}")
            tables = baselines.unmeasured(self.recipe, without)
        write_json(self.folder.baselines, tables)
        write_json(self.folder.evaluation, measures)

    def _calibrate(self) -> None:
        assert self.calibration is not None, "a stage that nobody wants is skipped"
        if self.force:  # as with training, from the beginning
            discard(self.folder.calibration_work)
        crosscoder = Crosscoder.load(self.folder.path)
        store = self._store_for(crosscoder)
        calibrate(self.recipe, self.calibration, store, crosscoder, folder=self.folder, progress=self.progress)

    def _analyse(self) -> None:
        crosscoder = Crosscoder.load(self.folder.path)
        readouts = {source.name: Unembedding.of_source(source) for source in self._loaded()}
        store = self._store_for(crosscoder)
        analyse(self.recipe, store, crosscoder, folder=self.folder, progress=self.progress, readouts=readouts)

    def _readers(self) -> list[Source]:
        """The models as far as their hookpoints."""
        return [cut(source, source.recipe.layer) for source in self._loaded()]

    def _loaded(self) -> list[Source]:
        """The whole models; none when the recipe has none."""
        return [load_source(source) for source in self.recipe.sources]

    def _store(self) -> ActivationStore:
        return ActivationStore.open(self.store_path())

    def _store_for(self, crosscoder: Crosscoder) -> ActivationStore:
        """The rows to measure a crosscoder on; those of other programs are looked through once."""
        store = self._store()
        check_sources(crosscoder, store.widths, store.path)
        if self.recipe.imported is not None and self.activations is not None and store.path not in self._looked_through:
            store.verify()
            self._looked_through.add(store.path)
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
) -> RunFolder:
    """Run a recipe's stages (all by default) and return its folder; of a sweep, that of its first run.

    Raises CrossdiffError for whatever a person can mend; the same command goes on where it stopped.
    """
    recipe = load_recipe(recipe_path, overrides)
    if activations is None and (not recipe.sources or recipe.corpus is None):
        raise RecipeError(
            f"{recipe_path}: `sources` and `corpus` are needed to run models. "
            "To train on activations you already have, add --activations DIR."
        )
    # A recipe in a run's folder is that run's, also when it was written before recipes could say what they can now.
    own = None if overrides else RunFolder.around(recipe_path)
    # Of several variants only the first can be the one whose folder the recipe lies in.
    folders = itertools.chain([own], itertools.repeat(None))
    runs = [
        Run(variant, activations=activations, force=force, folder=folder)
        for variant, folder in zip(recipe.variants(), folders, strict=False)
    ]
    wanted = stages or STAGES
    if force and "train" in wanted:
        for one in runs:  # again means from the beginning, not from the last checkpoint
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
    """Make a run of another tool's checkpoint and return its folder; evaluate and analyse it as any other.

    Options are those of the format (`trainer.interchange`). Raises CrossdiffError for whatever a person can mend.
    """
    recipe = recipe_of(path, name, format=format, options=options, overrides=overrides)
    imported = Run(recipe, force=True)
    imported.execute(("train",))
    return imported.folder


def calibrate_run(folder: RunFolder, overrides: tuple[str, ...] = (), *, force: bool = False) -> None:
    """Calibrate a finished run, whether its recipe says so or not, and publish its results again.

    Overrides are of the recipe's `calibration`. Raises CrossdiffError for whatever a person can mend.
    """
    recipe = load_recipe(folder.recipe)
    plain = {} if recipe.calibration is None else recipe.calibration.model_dump(mode="json")
    wanted = parse_recipe({"name": recipe.name, "calibration": plain}, origin="calibration", overrides=overrides)
    store = json.loads(folder.store.read_text(encoding="utf-8"))["path"] if folder.store.is_file() else None
    known = recipe.sources and recipe.corpus is not None
    one = Run(
        recipe,
        activations=None if known or store is None else Path(store),
        force=force,
        folder=folder,
        calibration=wanted.calibration,
    )
    one.execute(("calibrate", "analyse"))


def train_side_by_side(runs: list[Run]) -> None:
    """Train those of a sweep's runs that are not up to date, reading the rows once for all."""
    waiting = [run for run in runs if run.force or not run.is_trained()]
    if not waiting:
        return
    store = ActivationStore.open(runs[0].store_path())
    waiting[0].progress.say(f"sweep: {len(waiting)} of {len(runs)} runs are trained side by side")
    with waiting[0].progress.running(), waiting[0].progress.stage("train"):
        train_together([(run.recipe, run.folder) for run in waiting], store, waiting[0].progress)
    for run in waiting:
        run.mark_trained()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
