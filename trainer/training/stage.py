"""Stage 2: fit crosscoders to the stored activations, with checkpoints, several side by side over one pass of rows."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.fold_damping import undamped
from trainer.reading.stream import Stream
from trainer.recipe.recipe import Recipe
from trainer.run.folder import RunFolder, discard
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, Rows
from trainer.training.checkpoint import latest
from trainer.training.trainer import Training


def train(recipe: Recipe, store: ActivationStore, folder: RunFolder, progress: Progress) -> Crosscoder:
    """Fit one crosscoder and save it in the run's folder; see `train_together`."""
    return train_together([(recipe, folder)], store, progress)[0]


def train_together(
    runs: Sequence[tuple[Recipe, RunFolder]], store: ActivationStore, progress: Progress
) -> list[Crosscoder]:
    """Fit a crosscoder for every run and save it in the run's folder, reading each batch once for all.

    The recipes agree on batch, epochs and shuffle seed. Each goes on from its newest checkpoint of the same recipe and
    data; one that is ahead of the others waits for them. Raises StoreError, DiskFull.
    """
    fits = [_Fit(recipe, folder, store) for recipe, folder in runs]
    behind = min(fits, key=lambda fit: fit.training.step).training
    if behind.step:
        progress.say(f"train: going on from step {behind.step} of {behind.steps}")
    step = behind.step
    with contextlib.ExitStack() as stack:
        task = stack.enter_context(progress.task("train", total=behind.steps, unit="steps", before=step))
        logs = [stack.enter_context(fit.folder.metrics.open("a", encoding="utf-8")) for fit in fits]
        for rows in behind.batches_left():
            for fit, log in zip(fits, logs, strict=True):
                if fit.training.step == step:
                    fit.run_step(rows, log)
            step += 1
            task.advance(1, **fits[0].shown)
    return [fit.finish() for fit in fits]


def train_streaming(
    recipe: Recipe, store: ActivationStore, folder: RunFolder, stream: Stream, progress: Progress
) -> Crosscoder:
    """Fit a crosscoder to rows as they are harvested, and save it in the run's folder.

    Of the store come the normalisers, the first rows and the held-out ones. A checkpoint is written between two rounds
    of the stream, with the rows that wait in it. Raises StoreError, CorpusError, DiskFull.
    """
    fit = _Fit(recipe, folder, store, steps=stream.steps)
    training, every = fit.training, recipe.training.checkpoint_every
    if training.step:
        stream.restore(_waiting(folder, training.step))
        progress.say(f"train: going on from step {training.step} of {training.steps}")
    saved = training.step
    with (
        progress.task("train", total=training.steps, unit="steps", before=saved) as task,
        folder.metrics.open("a", encoding="utf-8") as log,
    ):
        for batches in stream.rounds():
            for rows in batches:
                fit.run_step(rows, log)
                task.advance(1, **fit.shown)
            if training.step - saved >= every and not stream.position.ended:
                saved = training.step
                fit.save_with(stream)
    if training.step < training.steps:
        found = stream.position.entered
        progress.say(
            f"train: the text ended after {found:,} of {recipe.harvest.rows:,} rows, before the learning rate had come "
            f"down. For a whole schedule set harvest.rows to {found} and train again."
        )
    trained = fit.finish()
    discard(folder.checkpoints)
    return trained


def _waiting(folder: RunFolder, step: int) -> Path:
    """Rows that waited when a checkpoint was written."""
    return folder.checkpoints / f"waiting-{step:08d}.safetensors"


class _Fit:
    """One run's training with its files."""

    def __init__(self, recipe: Recipe, folder: RunFolder, store: ActivationStore, *, steps: int | None = None) -> None:
        """With `steps` the rows come from a stream, and checkpoints are written by `save_with` alone."""
        self.folder = folder
        self.training = Training(recipe, store)
        self._streams = steps is not None
        self.training.steps = steps or self.training.steps
        self.shown: dict[str, float] = {}
        self._fingerprint = fingerprint_of(recipe, store)
        self._checkpoint_every = recipe.training.checkpoint_every
        checkpoint = latest(folder.checkpoints, self._fingerprint)
        if checkpoint is not None:
            self.training.restore(checkpoint)
        _forget_metrics_after(folder.metrics, self.training.step)

    def run_step(self, rows: Rows, log: IO[str]) -> None:
        """One step; measures go into the log, and every so often the state into a checkpoint."""
        measures = self.training.run_step(rows)
        if measures:
            log.write(json.dumps({"step": self.training.step, **measures}) + "\n")
            log.flush()
            self.shown = {name: value for name, value in measures.items() if name != "learning_rate"}
        if not self._streams and self.training.step % self._checkpoint_every == 0:
            self.training.save(self.folder.checkpoints, self._fingerprint)

    def save_with(self, stream: Stream) -> None:
        """Write a checkpoint, and before it what waits in the stream; drop what belongs to no checkpoint any more."""
        stream.save(_waiting(self.folder, self.training.step))
        self.training.save(self.folder.checkpoints, self._fingerprint)
        for path in self.folder.checkpoints.glob("waiting-*.safetensors"):
            if not path.with_name(path.name.replace("waiting", "step")).is_file():
                path.unlink()

    def finish(self) -> Crosscoder:
        """Set the inference thresholds and save the crosscoder."""
        self.training.calibrate()
        trained = undamped(self.training.crosscoder)
        trained.save(self.folder.path)
        return trained


def fingerprint_of(recipe: Recipe, store: ActivationStore) -> str:
    """Changes when anything that decides the weights changes: what to fit, how, and the data."""
    identity = recipe.identity()
    streamed = [] if recipe.harvest.stream is None else [identity["sources"], identity["corpus"], identity["harvest"]]
    parts: list[Any] = [
        *streamed,
        identity["crosscoder"],
        recipe.training.model_dump(mode="json", exclude={"checkpoint_every", "device"}),
        [shard.sha256 for shard in store.manifest.shards],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _forget_metrics_after(metrics: Path, step: int) -> None:
    """Drop lines that an interrupted run wrote beyond its last checkpoint."""
    if not metrics.is_file():
        return
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    metrics.write_text("".join(kept), encoding="utf-8")
