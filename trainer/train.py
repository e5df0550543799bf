"""Stage 2: fit the crosscoder to the stored activations, with checkpoints."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.activation_store import ActivationStore, Rows
from trainer.batches import Batches
from trainer.checkpoint import Checkpoint, latest
from trainer.crosscoder import Crosscoder, initial
from trainer.device import compute_dtype, pick_device
from trainer.errors import StoreError
from trainer.groups import Group, preset
from trainer.losses import Encoders, Forward, dead_features_loss, forward
from trainer.normalisation import Normaliser, centred_rms, median_norm
from trainer.progress import Progress
from trainer.recipe import Recipe
from trainer.run_folder import RunFolder
from trainer.sparsity import RunningThreshold, annealed_k

LOG_EVERY = 10
"""Steps between lines of metrics."""
NORMALISER_ROWS = 131_072
"""Rows from which mean and scale are estimated, at most."""
CALIBRATION_ROWS = 16_384
"""Held-out rows on which the inference threshold is set, at most."""


class Training:
    """A training in progress: weights, optimiser and what is remembered between steps."""

    def __init__(self, recipe: Recipe, store: ActivationStore) -> None:
        """Fresh weights from the recipe's seed. Raises StoreError when the store has too few rows for a batch."""
        self.recipe, self.store = recipe, store
        self.device = pick_device(recipe.training.device)
        self.batches = Batches(store, recipe.training.batch, recipe.training.seed)
        if not self.batches.per_epoch:
            raise StoreError(
                f"{store.path} has {store.count('train'):,} training rows, fewer than one batch of "
                f"{recipe.training.batch:,}. Set training.batch lower or harvest more rows."
            )
        self.steps = self.batches.per_epoch * recipe.training.epochs
        groups = preset(recipe.crosscoder, tuple(store.widths))
        generator = torch.Generator().manual_seed(recipe.training.seed)
        weights = initial(store.widths, groups, decoder_norm=recipe.crosscoder.decoder_norm, generator=generator)
        self.crosscoder = Crosscoder(
            widths=store.widths,
            groups=groups,
            weights={name: tensor.to(self.device).requires_grad_() for name, tensor in weights.items()},
            normaliser=estimate_normalisers(recipe, store),
            threshold={group.name: 0.0 for group in groups},
            rank_by=recipe.crosscoder.sparsity.rank_by,
            aggregation=recipe.crosscoder.aggregation,
        )
        self.encoders = Encoders(self.crosscoder, compute_dtype(self.device))
        self.optimiser = torch.optim.Adam(
            self.crosscoder.weights.values(), lr=recipe.training.learning_rate, fused=True, betas=(0.9, 0.999)
        )
        self.rows_since_fired = torch.zeros(self.crosscoder.features, dtype=torch.int64, device=self.device)
        decay = recipe.crosscoder.sparsity.threshold_decay
        self.thresholds = {group.name: RunningThreshold(decay) for group in groups}
        self.guess = {group.name: 0.0 for group in groups}
        self.step = 0

    def run_step(self, raw: Rows) -> dict[str, float]:
        """One step on raw activations [batch, width]; returns what is watched."""
        crosscoder, recipe = self.crosscoder, self.recipe
        rows = crosscoder.normalise(raw)
        k = annealed_k(recipe.crosscoder.sparsity, self.step, self.steps)
        count = len(next(iter(rows.values())))
        done = forward(crosscoder, rows, self._budgets(k * count), self.guess, self.encoders)
        loss = done.reconstruction
        dead = self._dead()
        if any(map(len, dead.values())):
            auxiliary = dead_features_loss(crosscoder, done, dead, recipe.crosscoder.dead_features.k)
            if auxiliary is not None:
                loss = loss + recipe.crosscoder.dead_features.weight * auxiliary
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradient(list(crosscoder.weights.values()), recipe.training.gradient_clip)
        for settings in self.optimiser.param_groups:
            settings["lr"] = self._learning_rate()
        self.optimiser.step()
        self._remember(done, annealing=k != recipe.crosscoder.sparsity.k)
        self.step += 1
        return self._measures(done, loss, rows, dead) if self.step % LOG_EVERY == 0 or self.step == self.steps else {}

    def _budgets(self, keep: int) -> list[tuple[tuple[Group, ...], int]]:
        """Groups that compete with each other, and how many active pairs they share."""
        groups = self.crosscoder.groups
        if self.recipe.crosscoder.sparsity.budget == "joint":
            return [(groups, keep)]
        return [((group,), max(1, round(keep * group.features / self.crosscoder.features))) for group in groups]

    def _dead(self) -> dict[str, Tensor]:
        """Per group, features that have not fired for too many rows, counted within the group."""
        dead = self.rows_since_fired >= self.recipe.crosscoder.dead_features.after_rows
        return {g.name: torch.nonzero(dead[g.first : g.stop]).squeeze(1) for g in self.crosscoder.groups}

    def _learning_rate(self) -> float:
        """Linear warm-up, constant, linear decay to zero over the last share of the steps."""
        training = self.recipe.training
        warm = min(1.0, (self.step + 1) / max(1.0, training.warmup_share * self.steps))
        cool = min(1.0, (self.steps - self.step) / max(1.0, training.decay_share * self.steps))
        return training.learning_rate * min(warm, cool)

    @torch.no_grad()
    def _remember(self, done: Forward, *, annealing: bool) -> None:
        count = len(next(iter(done.errors.values())))
        self.rows_since_fired += count
        for group in self.crosscoder.groups:
            fired = done.patterns[group.name].feature + group.first
            self.rows_since_fired[fired] = 0
            self.guess[group.name] = done.smallest[group.name]
            if not annealing:
                self.thresholds[group.name].update(done.smallest[group.name])

    @torch.no_grad()
    def _measures(self, done: Forward, loss: Tensor, rows: Rows, dead: dict[str, Tensor]) -> dict[str, float]:
        count = len(next(iter(rows.values())))
        measures = {"loss": float(loss.detach()), "l0": done.active / count}
        measures["dead"] = sum(map(len, dead.values())) / self.crosscoder.features
        for source, error in done.errors.items():
            spread = (rows[source] - rows[source].mean(dim=0)).square().sum()
            measures[f"variance_explained.{source}"] = float(1 - error.detach().square().sum() / spread)
        measures["learning_rate"] = self._learning_rate()
        return measures

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write a checkpoint."""
        tensors = {f"weight.{name}": tensor for name, tensor in self.crosscoder.weights.items()}
        for name, tensor in self.crosscoder.weights.items():
            for key, moment in self.optimiser.state[tensor].items():
                tensors[f"adam.{key}.{name}"] = moment
        tensors["rows_since_fired"] = self.rows_since_fired
        state = {
            "fingerprint": fingerprint,
            "guess": self.guess,
            "thresholds": {name: [average.value, average.steps] for name, average in self.thresholds.items()},
        }
        Checkpoint(self.step, tensors, state).save(folder)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        for name, tensor in self.crosscoder.weights.items():
            tensor.copy_(checkpoint.tensors[f"weight.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            moments = {key: checkpoint.tensors[f"adam.{key}.{name}"] for key in keys}
            self.optimiser.state[tensor] = {
                key: moment.to(self.device if key != "step" else "cpu") for key, moment in moments.items()
            }
        self.rows_since_fired.copy_(checkpoint.tensors["rows_since_fired"])
        self.guess = dict(checkpoint.state["guess"])
        for name, (value, steps) in checkpoint.state["thresholds"].items():
            self.thresholds[name].value, self.thresholds[name].steps = value, steps
        self.step = checkpoint.step

    def batches_left(self) -> Iterator[Rows]:
        """Batches from the current step to the end."""
        for epoch in range(self.step // self.batches.per_epoch, self.recipe.training.epochs):
            yield from self.batches.epoch(epoch, first=max(0, self.step - epoch * self.batches.per_epoch))

    @torch.no_grad()
    def calibrate(self) -> None:
        """Set the inference thresholds: on held-out rows as many features are active as in training.

        Falls back to the moving average where the store has no held-out rows.
        """
        found: dict[str, list[float]] = {group.name: [] for group in self.crosscoder.groups}
        rows_seen = 0
        for block in self.store.blocks("held_out", rows=self.recipe.training.batch):
            rows = self.crosscoder.normalise(block.rows)
            count = len(next(iter(rows.values())))
            keep = self.recipe.crosscoder.sparsity.k * count
            done = forward(self.crosscoder, rows, self._budgets(keep), self.guess, self.encoders)
            for name, smallest in done.smallest.items():
                found[name].append(smallest)
            rows_seen += count
            if rows_seen >= CALIBRATION_ROWS:
                break
        for name, values in found.items():
            self.crosscoder.threshold[name] = sum(values) / len(values) if values else self.thresholds[name].value


def train(recipe: Recipe, store: ActivationStore, folder: RunFolder, progress: Progress) -> Crosscoder:
    """Fit a crosscoder and save it in the run's folder.

    Goes on from the newest checkpoint of the same recipe and data. Raises StoreError, DiskFull.
    """
    training = Training(recipe, store)
    fingerprint = fingerprint_of(recipe, store)
    checkpoint = latest(folder.checkpoints, fingerprint)
    if checkpoint is not None:
        training.restore(checkpoint)
        progress.say(f"train: going on from step {training.step} of {training.steps}")
    _forget_metrics_after(folder.metrics, training.step)
    with (
        progress.task("train", total=training.steps, unit="steps") as task,
        folder.metrics.open("a", encoding="utf-8") as log,
    ):
        task.advance(training.step)
        for rows in training.batches_left():
            measures = training.run_step(rows)
            if measures:
                log.write(json.dumps({"step": training.step, **measures}) + "\n")
                log.flush()
            task.advance(1, **{name: value for name, value in measures.items() if name != "learning_rate"})
            if training.step % recipe.training.checkpoint_every == 0:
                training.save(folder.checkpoints, fingerprint)
    training.calibrate()
    training.crosscoder.save(folder.path)
    return training.crosscoder


def clip_gradient(weights: list[Tensor], largest: float) -> None:
    """Scale all gradients together so that their norm is at most `largest`; leave smaller ones untouched.

    torch's own multiplies always, which is one more pass over every gradient.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if norm > largest:
        torch._foreach_mul_(gradients, float(largest / norm))


def estimate_normalisers(recipe: Recipe, store: ActivationStore) -> dict[str, Normaliser]:
    """Mean and scale of every source from training rows, as the recipe says."""

    def blocks(source: str) -> Iterator[Tensor]:
        seen = 0
        for block in store.blocks("train"):
            yield block.rows[source]
            seen += len(block.rows[source])
            if seen >= NORMALISER_ROWS:
                return

    if recipe.crosscoder.normalisation == "centred_rms":
        return {source: centred_rms(blocks(source)) for source in store.widths}
    mean_width = sum(store.widths.values()) / len(store.widths)
    return {source: median_norm(blocks(source), mean_width) for source in store.widths}


def fingerprint_of(recipe: Recipe, store: ActivationStore) -> str:
    """Changes when anything that decides the weights changes: what to fit, how, and the data."""
    parts: list[Any] = [
        recipe.crosscoder.model_dump(mode="json"),
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
