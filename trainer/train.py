"""Stage 2: fit crosscoders to the stored activations, with checkpoints, several side by side over one pass of rows."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from trainer.activation_store import ActivationStore, Rows
from trainer.checkpoint import latest
from trainer.crosscoder import Crosscoder
from trainer.damping import undamped
from trainer.progress import Progress
from trainer.recipe import Recipe
from trainer.run_folder import RunFolder
from trainer.training import Training


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
    with progress.task("train", total=behind.steps, unit="steps") as task, contextlib.ExitStack() as stack:
        logs = [stack.enter_context(fit.folder.metrics.open("a", encoding="utf-8")) for fit in fits]
        step = behind.step
        task.advance(step)
        for rows in behind.batches_left():
            for fit, log in zip(fits, logs, strict=True):
                if fit.training.step == step:
                    fit.run_step(rows, log)
            step += 1
            task.advance(1, **fits[0].shown)
    return [fit.finish() for fit in fits]


class _Fit:
    """One run's training with its files."""

    def __init__(self, recipe: Recipe, folder: RunFolder, store: ActivationStore) -> None:
        self.folder = folder
        self.training = Training(recipe, store)
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
        if self.training.step % self._checkpoint_every == 0:
            self.training.save(self.folder.checkpoints, self._fingerprint)

    def finish(self) -> Crosscoder:
        """Set the inference thresholds and save the crosscoder."""
        self.training.calibrate()
        trained = undamped(self.training.crosscoder)
        trained.save(self.folder.path)
        return trained


def fingerprint_of(recipe: Recipe, store: ActivationStore) -> str:
    """Changes when anything that decides the weights changes: what to fit, how, and the data."""
    parts: list[Any] = [
        recipe.identity()["crosscoder"],
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
