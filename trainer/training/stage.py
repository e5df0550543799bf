"""Fits one or several crosscoders to the same batches, with checkpoints; stage `train`."""

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from trainer.analysis.claims.stability import other_runs
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import TrainingError
from trainer.reading.stream import ActivationStream
from trainer.recipe.recipe import Recipe
from trainer.recipe.schedule import Schedule
from trainer.run.checksum import sha256_of
from trainer.run.folder import RunFolder, atomic_write, discard
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, Rows
from trainer.training.checkpoint import latest
from trainer.training.ensemble import known_features, members, with_consensus
from trainer.training.trainer import Training

DIVERGED = -10.0
"""A training that explains less than this of a source's variance has diverged; even random features explain more."""


def train(recipe: Recipe, store: ActivationStore, folder: RunFolder, progress: Progress) -> Crosscoder:
    """Fit one crosscoder and save it in the run's folder; see `train_together`."""
    return train_together([(recipe, folder)], store, progress)[0]


def train_together(
    runs: Sequence[tuple[Recipe, RunFolder]], store: ActivationStore, progress: Progress
) -> list[Crosscoder]:
    """Fit a crosscoder for every run and save it in the run's folder, reading each batch once for all.

    Residual dictionaries that a recipe has beside its crosscoder are fitted along with it, and what their trainings
    have in common is added to it. The recipes must agree on batch, epochs and shuffle seed. Each resumes from its
    newest checkpoint of the same recipe and data; one that is ahead waits for the others. Raises StoreError, DiskFull.
    """
    runs = [(settled(recipe, store), folder) for recipe, folder in runs]
    beside = [members(recipe, folder) for recipe, folder in runs]
    known = [known_features(folder) if others else None for (_, folder), others in zip(runs, beside, strict=True)]
    fits = [_Fit(recipe, folder, store, progress) for recipe, folder in (*runs, *itertools.chain(*beside))]
    _run_together(fits, progress)
    trained = [fit.finish() for fit in fits]
    rest = iter(trained[len(runs) :])
    return [
        _add_residuals(run, [one, *itertools.islice(rest, len(others))], previous, store, progress)
        for run, one, others, previous in zip(runs, trained, beside, known, strict=False)
    ]


def _add_residuals(
    run: tuple[Recipe, RunFolder],
    trained: Sequence[Crosscoder],
    previous: Crosscoder | None,
    store: ActivationStore,
    progress: Progress,
) -> Crosscoder:
    """A run's crosscoder with what its residual dictionaries have in common; saved in the run's folder.

    `trained` are the crosscoder and its residual dictionaries.
    """
    (recipe, folder), (crosscoder, *beside) = run, trained
    if recipe.crosscoder.residual is None:
        return crosscoder
    with progress.task("Comparing trainings", total=None):
        others = other_runs(folder)
        wanted = recipe.crosscoder.residual
        complete = with_consensus(crosscoder, beside, store, wanted, previous=previous, others=others)
        complete.save(folder.path)
    return complete


def _run_together(fits: Sequence["_Fit"], progress: Progress) -> None:
    """Run all steps that are left of several trainings."""
    slowest = min(fits, key=lambda fit: fit.training.step).training
    if slowest.step:
        progress.notify(f"train: resuming from step {slowest.step} of {slowest.steps}")
    step = slowest.step
    with contextlib.ExitStack() as stack:
        task = stack.enter_context(progress.task("train", total=slowest.steps, unit="steps", initial=step))
        logs = [stack.enter_context(fit.folder.metrics.open("a", encoding="utf-8")) for fit in fits]
        for rows in slowest.remaining_batches():
            for fit, log in zip(fits, logs, strict=True):
                if fit.training.step == step:
                    fit.run_step(rows, log)
            step += 1
            task.advance(1, **fits[0].progress_values)


def train_streaming(
    recipe: Recipe, store: ActivationStore, folder: RunFolder, stream: ActivationStream, progress: Progress
) -> Crosscoder:
    """Fit a crosscoder to rows as they are harvested, and save it in the run's folder.

    The store gives the normalisers, the first rows and the held-out ones. Checkpoints are written between two rounds of
    the stream, with the rows buffered in it. Raises StoreError, CorpusError, DiskFull.
    """
    fit = _Fit(recipe, folder, store, progress, steps=stream.steps)
    training, interval = fit.training, recipe.training.checkpoint_every
    if training.step:
        stream.restore(_buffered_rows(folder, training.step))
        progress.notify(f"train: resuming from step {training.step} of {training.steps}")
    saved = training.step
    with (
        progress.task("train", total=training.steps, unit="steps", initial=saved) as task,
        folder.metrics.open("a", encoding="utf-8") as log,
    ):
        for batches in stream.rounds():
            for rows in batches:
                fit.run_step(rows, log)
                task.advance(1, **fit.progress_values)
            if training.step - saved >= interval and not stream.position.ended:
                saved = training.step
                fit.save_with_stream(stream)
    if training.step < training.steps:
        rows_read = stream.position.entered
        progress.notify(
            f"train: the text ended after {rows_read:,} of {recipe.harvest.rows:,} rows, before the learning rate had "
            f"decayed. For a complete schedule set harvest.rows to {rows_read} and train again."
        )
    previous = known_features(folder)
    trained = _with_residuals_of_sample((recipe, folder), fit.finish(), previous, store, progress)
    discard(folder.checkpoints)
    return trained


def _with_residuals_of_sample(
    run: tuple[Recipe, RunFolder],
    crosscoder: Crosscoder,
    previous: Crosscoder | None,
    store: ActivationStore,
    progress: Progress,
) -> Crosscoder:
    """A streamed run's crosscoder with residual dictionaries, which are fitted to the rows that are stored."""
    recipe, folder = run
    fits = [_Fit(one, place, store, progress) for one, place in members(settled(recipe, store), folder)]
    if not fits:
        return crosscoder
    _run_together(fits, progress)
    return _add_residuals(run, [crosscoder, *(fit.finish() for fit in fits)], previous, store, progress)


def _buffered_rows(folder: RunFolder, step: int) -> Path:
    """File of the rows that the stream had buffered at a checkpoint."""
    return folder.checkpoints / f"waiting-{step:08d}.safetensors"


class _Fit:
    """One run's training with its checkpoints and metrics."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        store: ActivationStore,
        progress: Progress,
        *,
        steps: int | None = None,
    ) -> None:
        """With `steps` the rows come from a stream, and only `save_with_stream` writes checkpoints."""
        self.folder = folder
        folder.path.mkdir(parents=True, exist_ok=True)
        self.training = Training(recipe, store)
        self._streams = steps is not None
        self.training.steps = steps or self.training.steps
        self.progress_values: dict[str, float] = {}
        self._fingerprint = fingerprint_of(recipe, store)
        self._checkpoint_every = recipe.training.checkpoint_every
        checkpoint = latest(folder.checkpoints, self._fingerprint, notify=progress.notify)
        if checkpoint is not None:
            self.training.restore(checkpoint)
        _truncate_metrics(folder.metrics, self.training.step, progress)

    def run_step(self, rows: Rows, log: IO[str]) -> None:
        """Run one step, log its metrics, and write a checkpoint when one is due."""
        metrics = self.training.run_step(rows)
        if metrics:
            # Of rows that are all equal there is no variance to explain.
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            log.write(json.dumps({"step": self.training.step, **finite}, allow_nan=False) + "\n")
            log.flush()
            self.progress_values = {name: value for name, value in finite.items() if name != "learning_rate"}
        if not self._streams and self.training.step % self._checkpoint_every == 0:
            self.training.save(self.folder.checkpoints, self._fingerprint)

    def save_with_stream(self, stream: ActivationStream) -> None:
        """Write the stream's buffered rows, then a checkpoint; remove buffered rows whose checkpoint is gone."""
        buffered = _buffered_rows(self.folder, self.training.step)
        stream.save(buffered)
        self.training.save(self.folder.checkpoints, self._fingerprint, {buffered.name: sha256_of(buffered)})
        for path in self.folder.checkpoints.glob("waiting-*.safetensors"):
            if not path.with_name(path.name.replace("waiting", "step")).is_file():
                path.unlink()

    def finish(self) -> Crosscoder:
        """Set the inference thresholds and save the crosscoder, with everything folded into its weights.

        One that residual dictionaries belong to is saved with them: until then its file holds what an earlier training
        found, from which places and ids are taken. Raises TrainingError when it reconstructs far worse than the rows'
        mean would.
        """
        self._refuse_diverged()
        self.training.set_thresholds()
        trained = self.training.trained()
        if self.training.recipe.crosscoder.residual is None:
            trained.save(self.folder.path)
        return trained

    def _refuse_diverged(self) -> None:
        for name, value in self.progress_values.items():
            if name.startswith("variance_explained.") and value < DIVERGED:
                raise TrainingError(
                    f"The training diverged: in the end it explains {value:.3g} of the variance of "
                    f"{name.partition('.')[2]}, where 1 is all and 0 is the rows' mean. Set training.learning_rate, "
                    f"now {self.training.schedule.learning_rate:g}, lower and run again."
                )


def settled(recipe: Recipe, store: ActivationStore) -> Recipe:
    """The recipe with the training settings stated that the store's rows and widths decide."""
    return Schedule.of(recipe, store.count("train"), store.widths).stated_in(recipe)


def fingerprint_of(recipe: Recipe, store: ActivationStore) -> str:
    """Hash of everything that determines the weights: crosscoder, training settings and data."""
    recipe = settled(recipe, store)
    identity = recipe.identity()
    streamed = [] if recipe.harvest.stream is None else [identity["sources"], identity["corpus"], identity["harvest"]]
    parts: list[Any] = [
        *streamed,
        identity["crosscoder"],
        {key: value for key, value in identity["training"].items() if key not in ("checkpoint_every", "device")},
        [shard.sha256 for shard in store.manifest.shards],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _truncate_metrics(metrics: Path, step: int, progress: Progress) -> None:
    """Drop lines that an interrupted run wrote after its last checkpoint, and damaged ones, which are told."""
    if not metrics.is_file():
        if step:
            progress.notify(f"train: {metrics.name} is missing, so the training curve begins at step {step}")
        return
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    if None in steps[:-1]:  # the last line may be cut by the interruption itself
        progress.notify(f"train: {steps[:-1].count(None)} damaged lines of {metrics.name} are left out")
    kept = [line for line, found in zip(lines, steps, strict=True) if found is not None and found <= step]
    with atomic_write(metrics) as draft:
        draft.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> int | None:
    """The step of a line of metrics, or None if it is damaged."""
    try:
        step = json.loads(line)["step"] if line.endswith("\n") else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None
