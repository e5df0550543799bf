"""Training: a crosscoder being fitted, one step at a time: weights, optimiser and what is remembered between steps."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder, initial
from trainer.crosscoder.groups import differences, preset
from trainer.crosscoder.normalisation import Normaliser, centred_rms, damped, median_norm
from trainer.crosscoder.selection import RunningThreshold, annealed_k, true_places
from trainer.device import compute_dtype, pick_device
from trainer.errors import StoreError
from trainer.kernels.readback import ScalarReadback
from trainer.recipe.recipe import Recipe
from trainer.store.batches import Batches
from trainer.store.store import ActivationStore, Rows
from trainer.training.checkpoint import Checkpoint
from trainer.training.encoding import Encoders, Encoding, budgets, encode_dense, encode_sparse
from trainer.training.gradients import write_gradients
from trainer.training.losses import dead_features_loss, reconstruction_loss, sparsity_penalty

LOG_EVERY = 10
"""Steps between measures."""
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
        self.batches = Batches(store, recipe.training.batch, recipe.training.shuffle_seed)
        if not self.batches.per_epoch:
            raise StoreError(
                f"{store.path} has {store.count('train'):,} training rows, fewer than one batch of "
                f"{recipe.training.batch:,}. Set training.batch lower or harvest more rows."
            )
        self.steps = self.batches.per_epoch * recipe.training.epochs
        self.crosscoder = fresh_crosscoder(recipe, store, self.device)
        screened = recipe.training.precision == "auto"
        self.encoders = Encoders(self.crosscoder, precision(recipe, self.device), screened=screened)
        self.log_thresholds = self._initial_log_thresholds()
        # A tied decoder stands under several names but is one parameter.
        self.parameters = list(
            {id(p): p for p in [*self.crosscoder.weights.values(), *self.log_thresholds.values()]}.values()
        )
        self.optimiser = torch.optim.Adam(self.parameters, lr=recipe.training.learning_rate, fused=True)
        groups = [group.name for group in self.crosscoder.groups]
        self.rows_since_fired = torch.zeros(self.crosscoder.features, dtype=torch.int64, device=self.device)
        self.thresholds = {name: RunningThreshold(recipe.crosscoder.sparsity.threshold_decay) for name in groups}
        self.guess = dict.fromkeys(groups, 0.0)
        self.step = 0

    def run_step(self, raw: Rows) -> dict[str, float]:
        """One step on raw activations [batch, width]; returns what is watched."""
        crosscoder, recipe = self.crosscoder, self.recipe
        rows = crosscoder.normalise(raw)
        k = annealed_k(recipe.crosscoder.sparsity, self.step, self.steps)
        counting = self._dead()
        done = self._encode(rows, k)
        loss = reconstruction_loss(done, recipe.crosscoder.loss)
        dead = counting()
        if self._penalised:
            loss = loss + sparsity_penalty(crosscoder, done, recipe.crosscoder.sparsity, self.step / self.steps)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        else:
            write_gradients(crosscoder, rows, done, recipe.crosscoder.loss)
            loss = loss + self._revive(done, dead)
        clip_gradient(self.optimiser, recipe.training.gradient_clip, in_step=self.device.type == "cuda")
        for settings in self.optimiser.param_groups:
            settings["lr"] = self._learning_rate()
        self.optimiser.step()
        self._remember(done, annealing=k != recipe.crosscoder.sparsity.k)
        self.step += 1
        return self._measures(done, loss, rows, dead) if self.step % LOG_EVERY == 0 or self.step == self.steps else {}

    def _revive(self, done: Encoding, dead: dict[str, Tensor]) -> Tensor | float:
        """Add the gradient of the dead features' loss, and return it as it counts."""
        settings = self.recipe.crosscoder.dead_features
        loss = dead_features_loss(self.crosscoder, done, dead, settings.k) if any(map(len, dead.values())) else None
        if loss is None:
            return 0.0
        loss = settings.weight * loss
        loss.backward()
        return loss.detach()

    @property
    def _penalised(self) -> bool:
        """Whether a penalty makes features sparse, rather than a budget."""
        return self.recipe.crosscoder.sparsity.kind in ("l1", "jumprelu")

    def _initial_log_thresholds(self) -> dict[str, Tensor]:
        sparsity = self.recipe.crosscoder.sparsity
        if sparsity.kind != "jumprelu":
            return {}
        start = math.log(sparsity.initial_threshold)
        return {
            group.name: torch.full((group.features,), start, device=self.device, requires_grad=True)
            for group in self.crosscoder.groups
        }

    def _encode(self, rows: Rows, k: int) -> Encoding:
        sparsity = self.recipe.crosscoder.sparsity
        if self._penalised:
            return encode_dense(self.crosscoder, rows, sparsity, self.log_thresholds, self.encoders.compute)
        keep = budgets(self.crosscoder, sparsity, k * len(next(iter(rows.values()))))
        return encode_sparse(self.crosscoder, rows, sparsity, keep, self.guess, self.encoders)

    def _dead(self) -> Callable[[], dict[str, Tensor]]:
        """What gives, per group, features that have not fired for too many rows, counted within the group.

        How many there are is on its way when the batch has been encoded: nobody waits for it.
        """
        dead = self.rows_since_fired >= self.recipe.crosscoder.dead_features.after_rows
        parts = {g.name: dead[g.first : g.stop] for g in self.crosscoder.groups}
        counts = ScalarReadback(torch.stack([part.sum() for part in parts.values()]))
        return lambda: {
            name: true_places(part, int(count))
            for (name, part), count in zip(parts.items(), counts.numbers(), strict=True)
        }

    def _learning_rate(self) -> float:
        """Linear warm-up, constant, linear decay to zero over the last share of the steps."""
        training = self.recipe.training
        warm = min(1.0, (self.step + 1) / max(1.0, training.warmup_share * self.steps))
        cool = min(1.0, (self.steps - self.step) / max(1.0, training.decay_share * self.steps))
        return training.learning_rate * min(warm, cool)

    @torch.no_grad()
    def _remember(self, done: Encoding, *, annealing: bool) -> None:
        self.rows_since_fired += len(next(iter(done.errors.values())))
        for group in self.crosscoder.groups:
            self.rows_since_fired[done.codes[group.name].fired + group.first] = 0
        for name, smallest in done.smallest.items():
            self.guess[name] = smallest
            if not annealing:
                self.thresholds[name].update(smallest)

    @torch.no_grad()
    def _measures(self, done: Encoding, loss: Tensor, rows: Rows, dead: dict[str, Tensor]) -> dict[str, float]:
        count = len(next(iter(rows.values())))
        explained = []
        for source, error in done.errors.items():
            spread = (rows[source] - rows[source].mean(dim=0)).square().sum()
            explained.append(1 - error.detach().square().sum() / spread)
        loss_now, *shares = ScalarReadback(torch.stack([loss.detach(), *explained])).numbers()
        measures = {"loss": loss_now, "l0": done.active / count}
        measures["dead"] = sum(map(len, dead.values())) / self.crosscoder.features
        measures |= {f"variance_explained.{source}": share for source, share in zip(done.errors, shares, strict=True)}
        measures["learning_rate"] = self._learning_rate()
        return measures

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write a checkpoint."""
        tensors = {"rows_since_fired": self.rows_since_fired}
        for number, parameter in enumerate(self.parameters):
            tensors[f"parameter.{number}"] = parameter
            for key, moment in self.optimiser.state[parameter].items():
                tensors[f"adam.{key}.{number}"] = moment
        state = {
            "fingerprint": fingerprint,
            "guess": self.guess,
            "thresholds": {name: [average.value, average.steps] for name, average in self.thresholds.items()},
        }
        Checkpoint(self.step, tensors, state).save(folder)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        for number, parameter in enumerate(self.parameters):
            parameter.copy_(checkpoint.tensors[f"parameter.{number}"])
            moments = {key: checkpoint.tensors[f"adam.{key}.{number}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimiser.state[parameter] = {key: moment.to(self.device) for key, moment in moments.items()}
        self.rows_since_fired.copy_(checkpoint.tensors["rows_since_fired"])
        self.guess = dict(checkpoint.state["guess"])
        for name, (value, steps) in checkpoint.state["thresholds"].items():
            self.thresholds[name].value, self.thresholds[name].steps = value, steps
        self.step = checkpoint.step

    def batches_left(self) -> Iterator[Rows]:
        """Batches from the current step to the end."""
        first = self.step
        for epoch in range(first // self.batches.per_epoch, self.recipe.training.epochs):
            yield from self.batches.epoch(epoch, first=max(0, first - epoch * self.batches.per_epoch))

    @torch.no_grad()
    def calibrate(self) -> None:
        """Set what decides at inference.

        JumpReLU: the learned thresholds; L1: zero; TopK: k. BatchTopK: on held-out rows as many features are active as
        in training, or the moving average of training where the store has no held-out rows.
        """
        crosscoder, sparsity = self.crosscoder, self.recipe.crosscoder.sparsity
        crosscoder.threshold = {group.name: torch.zeros(()) for group in crosscoder.groups}
        if sparsity.kind == "jumprelu":
            crosscoder.threshold = {name: log.detach().exp() for name, log in self.log_thresholds.items()}
        elif sparsity.kind == "topk":
            one_row = budgets(crosscoder, sparsity, sparsity.k)
            crosscoder.row_k = {group.name: keep for groups, keep in one_row for group in groups}
        elif sparsity.kind == "batch_topk":
            found = self._held_out_thresholds() or {name: mean.value for name, mean in self.thresholds.items()}
            crosscoder.threshold = {name: torch.tensor(value) for name, value in found.items()}

    def _held_out_thresholds(self) -> dict[str, float]:
        """Mean over held-out batches of the smallest score kept; empty without held-out rows."""
        found: dict[str, list[float]] = {}
        rows_seen = 0
        for block in self.store.blocks("held_out", rows=self.recipe.training.batch):
            rows = self.crosscoder.normalise(block.rows)
            for name, smallest in self._encode(rows, self.recipe.crosscoder.sparsity.k).smallest.items():
                found.setdefault(name, []).append(smallest)
            rows_seen += len(next(iter(rows.values())))
            if rows_seen >= CALIBRATION_ROWS:
                break
        return {name: sum(values) / len(values) for name, values in found.items()}


def fresh_crosscoder(recipe: Recipe, store: ActivationStore, device: torch.device) -> Crosscoder:
    """A crosscoder with weights from the recipe's seed and normalisers from the store's training rows."""
    made = differences(recipe.crosscoder, store.widths)
    widths = {name: store.widths[pair[0]] for name, pair in made.items()} or store.widths
    groups = preset(recipe.crosscoder, store.widths)
    generator = torch.Generator().manual_seed(recipe.training.seed)
    weights = initial(widths, groups, decoder_norm=recipe.crosscoder.decoder_norm, generator=generator)
    placed = {id(tensor): tensor.to(device).requires_grad_() for tensor in weights.values()}
    sparsity = recipe.crosscoder.sparsity
    crosscoder = Crosscoder(
        widths=widths,
        groups=groups,
        weights={name: placed[id(tensor)] for name, tensor in weights.items()},
        normaliser={},
        threshold={},
        # Penalties and JumpReLU decide by the activation itself.
        rank_by=sparsity.rank_by if sparsity.kind in ("batch_topk", "topk") else "activation",
        aggregation=recipe.crosscoder.aggregation,
        differences=made,
    )
    found = estimate_normalisers(recipe, store, crosscoder)
    crosscoder.normaliser = {source: normaliser.to(device) for source, normaliser in found.items()}
    return crosscoder


def clip_gradient(optimiser: torch.optim.Adam, largest: float, *, in_step: bool = False) -> None:
    """Scale all gradients together so that their norm is at most `largest`; leave smaller ones untouched.

    torch's own multiplies always, which is one more pass over every gradient. With `in_step` the next fused step of
    Adam does it on its way, by a number for which nobody waits.
    """
    weights = [weight for settings in optimiser.param_groups for weight in settings["params"]]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    # Row by row first: a CPU's threads share the rows, and short sums in fp32 lose nothing.
    norm = torch.nn.utils.get_total_norm([torch.linalg.vector_norm(gradient, dim=-1) for gradient in gradients])
    if in_step:
        optimiser.grad_scale = (norm / largest).clamp_min(1.0)  # type: ignore[attr-defined]
    elif norm > largest:
        torch._foreach_mul_(gradients, float(largest / norm))


def estimate_normalisers(recipe: Recipe, store: ActivationStore, crosscoder: Crosscoder) -> dict[str, Normaliser]:
    """Mean and scale of every source from training rows, as the recipe says."""

    def blocks(source: str) -> Iterator[Tensor]:
        seen = 0
        for block in store.blocks("train"):
            rows = crosscoder.derived(block.rows)[source]
            yield rows
            seen += len(rows)
            if seen >= NORMALISER_ROWS:
                return

    if recipe.crosscoder.normalisation == "centred_rms":
        found = {source: centred_rms(blocks(source)) for source in crosscoder.sources}
    else:
        mean_width = sum(crosscoder.widths.values()) / len(crosscoder.widths)
        found = {source: median_norm(blocks(source), mean_width) for source in crosscoder.sources}
    above = recipe.crosscoder.damp_above
    return found if above is None else {source: damped(one, blocks(source), above) for source, one in found.items()}


def precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    """What the dense product of a step runs in."""
    name = recipe.training.precision
    return compute_dtype(device) if name == "auto" else getattr(torch, name)
