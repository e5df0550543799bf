"""The training loop's state and step: weights, optimiser, schedules, thresholds and metrics."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.fold_damping import fold_damping
from trainer.crosscoder.groups import build_groups, difference_sources
from trainer.crosscoder.initial_weights import initial_weights
from trainer.crosscoder.residuals import Residuals
from trainer.crosscoder.selection import RunningThreshold, nonzero_indices
from trainer.device import compute_dtype, pick_device
from trainer.errors import StoreError, TrainingError
from trainer.kernels.readback import ScalarReadback
from trainer.recipe.recipe import Recipe
from trainer.store.batches import Batches
from trainer.store.store import ActivationStore, Rows
from trainer.training.checkpoint import BESIDE, Checkpoint
from trainer.training.encoding import BatchEncoder, Encoding, budgets, encode_dense, encode_sparse
from trainer.training.gradients import write_gradients
from trainer.training.inputs import estimate_normalisers, fit_residuals
from trainer.training.losses import dead_features_loss, reconstruction_loss, sparsity_penalty

LOG_EVERY = 10
"""Steps between metrics."""
THRESHOLD_ROWS = 16_384
"""Most held-out rows on which inference thresholds are set."""


class Training:
    """A training in progress: weights, optimiser and the state kept between steps."""

    def __init__(self, recipe: Recipe, store: ActivationStore) -> None:
        """Start with weights from the recipe's seed. Raises StoreError when the store has too few rows for a batch."""
        self.recipe, self.store = recipe, store
        self.device = pick_device(recipe.training.device)
        self.batches = Batches(store, recipe.training.batch, recipe.training.shuffle_seed)
        if not self.batches.per_epoch:
            raise StoreError(
                f"{store.path} has {store.count('train'):,} training rows, fewer than one batch of "
                f"{recipe.training.batch:,}. Set training.batch lower, or harvest more rows of a larger corpus."
            )
        self.steps = self.batches.per_epoch * recipe.training.epochs
        self._residuals = (
            fit_residuals(recipe.crosscoder, store, self.device) if recipe.crosscoder.variant == "residual" else None
        )
        self.crosscoder = fresh_crosscoder(recipe, store, self.device, self._residuals)
        use_int8 = recipe.training.precision == "auto"
        self.encoder = BatchEncoder(self.crosscoder, product_dtype(recipe, self.device), use_int8=use_int8)
        self.log_thresholds = self._initial_log_thresholds()
        # A tied decoder has several names but is one parameter.
        self.parameters = list(
            {id(p): p for p in [*self.crosscoder.weights.values(), *self.log_thresholds.values()]}.values()
        )
        self.optimiser = torch.optim.Adam(self.parameters, lr=recipe.training.learning_rate, fused=True)
        groups = [group.name for group in self.crosscoder.groups]
        self.rows_since_fired = torch.zeros(self.crosscoder.features, dtype=torch.int64, device=self.device)
        self.thresholds = {name: RunningThreshold(recipe.crosscoder.sparsity.threshold_decay) for name in groups}
        self.guess = dict.fromkeys(groups, 0.0)
        self.step = 0
        self._losses: dict[int, Tensor] = {}
        """Losses by step, counted from 1, that `require_finite` has not seen."""

    def normalise(self, raw: Rows) -> Rows:
        """What the crosscoder is trained on, for raw activations: normalised sources, or normalised residuals."""
        return self.crosscoder.normalise(raw if self._residuals is None else self._residuals(raw))

    def trained(self) -> Crosscoder:
        """The crosscoder as it is saved: without damping, and on the sources themselves."""
        crosscoder = fold_damping(self.crosscoder)
        return crosscoder if self._residuals is None else self._residuals.fold(crosscoder)

    def run_step(self, raw: Rows) -> dict[str, float]:
        """One step on raw activations [batch, width]; returns metrics at every `LOG_EVERY`th step, else nothing.

        Raises TrainingError when a loss is not a number: on a GPU at the next metrics, because reading it back waits.
        """
        crosscoder, recipe = self.crosscoder, self.recipe
        rows = self.normalise(raw)
        k = recipe.crosscoder.sparsity.k_at(self.step, self.steps)
        dead_features = self._find_dead_features()
        encoding = self._encode(rows, k)
        loss = reconstruction_loss(encoding, recipe.crosscoder.loss)
        dead = dead_features()
        if self._has_penalty:
            loss = loss + sparsity_penalty(crosscoder, encoding, recipe.crosscoder.sparsity, self.step / self.steps)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        else:
            write_gradients(crosscoder, rows, encoding, recipe.crosscoder.loss)
            loss = loss + self._add_dead_features_gradient(encoding, dead)
        self._losses[self.step + 1] = loss.detach()
        if self.device.type == "cpu":
            self.require_finite()
        clip_gradient(self.optimiser, recipe.training.gradient_clip, in_step=self.device.type == "cuda")
        for parameter_group in self.optimiser.param_groups:
            parameter_group["lr"] = self._learning_rate()
        self.optimiser.step()
        self._update_statistics(encoding, annealing=k != recipe.crosscoder.sparsity.k)
        self.step += 1
        if self.step % LOG_EVERY and self.step != self.steps:
            return {}
        self.require_finite()
        return self._metrics(encoding, loss, rows, dead)

    def require_finite(self) -> None:
        """Raise TrainingError when the loss of a step since the last call was not a number."""
        if not self._losses:
            return
        losses = ScalarReadback(torch.stack(list(self._losses.values()))).tolist()
        for step, loss in zip(self._losses, losses, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(_divergence(step, self.recipe.training.learning_rate))
        self._losses.clear()

    def _add_dead_features_gradient(self, encoding: Encoding, dead: dict[str, Tensor]) -> Tensor | float:
        """Add the gradient of the weighted dead features' loss, and return this loss."""
        settings = self.recipe.crosscoder.dead_features
        loss = dead_features_loss(self.crosscoder, encoding, dead, settings.k) if any(map(len, dead.values())) else None
        if loss is None:
            return 0.0
        loss = settings.weight * loss
        loss.backward()
        return loss.detach()

    @property
    def _has_penalty(self) -> bool:
        """Whether features are sparse by a penalty (L1, JumpReLU) instead of a budget."""
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
        if self._has_penalty:
            return encode_dense(self.crosscoder, rows, sparsity, self.log_thresholds, self.encoder.compute)
        keep = budgets(self.crosscoder, sparsity, k * len(next(iter(rows.values()))))
        return encode_sparse(self.crosscoder, rows, sparsity, keep, self.guess, self.encoder)

    def _find_dead_features(self) -> Callable[[], dict[str, Tensor]]:
        """Function that gives the dead features per group, those that have not fired for `after_rows` rows.

        Indices count within the group. Their number is read back while the batch is encoded, so that nothing waits.
        """
        dead = self.rows_since_fired >= self.recipe.crosscoder.dead_features.after_rows
        parts = {g.name: dead[g.first : g.stop] for g in self.crosscoder.groups}
        counts = ScalarReadback(torch.stack([part.sum() for part in parts.values()]))
        return lambda: {
            name: nonzero_indices(part, int(count))
            for (name, part), count in zip(parts.items(), counts.tolist(), strict=True)
        }

    def _learning_rate(self) -> float:
        """Linear warm-up, constant, then linear decay to zero over the last `decay_share` of the steps."""
        training = self.recipe.training
        warmup = min(1.0, (self.step + 1) / max(1.0, training.warmup_share * self.steps))
        decay = min(1.0, (self.steps - self.step) / max(1.0, training.decay_share * self.steps))
        return training.learning_rate * min(warmup, decay)

    @torch.no_grad()
    def _update_statistics(self, encoding: Encoding, *, annealing: bool) -> None:
        """Update the rows since each feature fired and the thresholds."""
        self.rows_since_fired += len(next(iter(encoding.errors.values())))
        for group in self.crosscoder.groups:
            self.rows_since_fired[encoding.codes[group.name].fired + group.first] = 0
        for name, smallest in encoding.smallest.items():
            self.guess[name] = smallest
            if not annealing:
                self.thresholds[name].update(smallest)

    @torch.no_grad()
    def _metrics(self, encoding: Encoding, loss: Tensor, rows: Rows, dead: dict[str, Tensor]) -> dict[str, float]:
        """Loss, L0, share of dead features, variance explained per target, and learning rate."""
        count = len(next(iter(rows.values())))
        explained = []
        for source, error in encoding.errors.items():
            total = (rows[source] - rows[source].mean(dim=0)).square().sum()
            explained.append(1 - error.detach().square().sum() / total)
        loss_value, *shares = ScalarReadback(torch.stack([loss.detach(), *explained])).tolist()
        metrics = {"loss": loss_value, "l0": encoding.active / count}
        metrics["dead"] = sum(map(len, dead.values())) / self.crosscoder.features
        for source, share in zip(encoding.errors, shares, strict=True):
            metrics[f"variance_explained.{source}"] = share
        metrics["learning_rate"] = self._learning_rate()
        return metrics

    def save(self, folder: Path, fingerprint: str, beside: dict[str, str] | None = None) -> None:
        """Write a checkpoint with this fingerprint into a folder; `beside` are files that belong to it, with SHA-256.

        Raises TrainingError, and writes nothing, when a loss since the last checkpoint was not a number.
        """
        self.require_finite()
        tensors = {"rows_since_fired": self.rows_since_fired}
        for number, parameter in enumerate(self.parameters):
            tensors[f"parameter.{number}"] = parameter
            for key, moment in self.optimiser.state[parameter].items():
                tensors[f"adam.{key}.{number}"] = moment
        state = {
            "fingerprint": fingerprint,
            "guess": self.guess,
            "thresholds": {name: [average.value, average.steps] for name, average in self.thresholds.items()},
            BESIDE: beside or {},
        }
        Checkpoint(self.step, tensors, state).save(folder)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Load the state of a checkpoint."""
        for number, parameter in enumerate(self.parameters):
            parameter.copy_(checkpoint.tensors[f"parameter.{number}"])
            moments = {key: checkpoint.tensors[f"adam.{key}.{number}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimiser.state[parameter] = {key: moment.to(self.device) for key, moment in moments.items()}
        self.rows_since_fired.copy_(checkpoint.tensors["rows_since_fired"])
        self.guess = dict(checkpoint.state["guess"])
        for name, (value, steps) in checkpoint.state["thresholds"].items():
            self.thresholds[name].value, self.thresholds[name].steps = value, steps
        self.step = checkpoint.step

    def remaining_batches(self) -> Iterator[Rows]:
        """Batches from the current step to the last."""
        first = self.step
        for epoch in range(first // self.batches.per_epoch, self.recipe.training.epochs):
            yield from self.batches.epoch(epoch, first=max(0, first - epoch * self.batches.per_epoch))

    @torch.no_grad()
    def set_thresholds(self) -> None:
        """Set the thresholds, or for TopK the k, that decide at inference which features are active.

        JumpReLU: the learned thresholds; L1: zero; TopK: k. BatchTopK: the mean threshold that keeps k features per row
        on held-out batches, or the moving average of training where the store has no held-out rows.
        """
        crosscoder, sparsity = self.crosscoder, self.recipe.crosscoder.sparsity
        crosscoder.threshold = {group.name: torch.zeros(()) for group in crosscoder.groups}
        if sparsity.kind == "jumprelu":
            crosscoder.threshold = {name: log.detach().exp() for name, log in self.log_thresholds.items()}
        elif sparsity.kind == "topk":
            one_row = budgets(crosscoder, sparsity, sparsity.k)
            crosscoder.row_k = {group.name: keep for groups, keep in one_row for group in groups}
        elif sparsity.kind == "batch_topk":
            values = self._held_out_thresholds() or {name: mean.value for name, mean in self.thresholds.items()}
            crosscoder.threshold = {name: torch.tensor(value) for name, value in values.items()}

    def _held_out_thresholds(self) -> dict[str, float]:
        """Per group, the mean over held-out batches of the smallest score kept; empty without held-out rows."""
        smallest_kept: dict[str, list[float]] = {}
        rows_seen = 0
        for block in self.store.blocks("held_out", rows=self.recipe.training.batch):
            rows = self.normalise(block.rows)
            for name, smallest in self._encode(rows, self.recipe.crosscoder.sparsity.k).smallest.items():
                smallest_kept.setdefault(name, []).append(smallest)
            rows_seen += len(next(iter(rows.values())))
            if rows_seen >= THRESHOLD_ROWS:
                break
        return {name: sum(values) / len(values) for name, values in smallest_kept.items()}


def fresh_crosscoder(
    recipe: Recipe, store: ActivationStore, device: torch.device, residuals: Residuals | None = None
) -> Crosscoder:
    """An untrained crosscoder: weights from the recipe's seed, normalisers from the store's training rows."""
    differences = difference_sources(recipe.crosscoder, store.widths)
    widths = {name: store.widths[pair[0]] for name, pair in differences.items()} or store.widths
    if residuals is not None:
        widths = {name: width for name, width in widths.items() if name in residuals.predictions}
    groups = build_groups(recipe.crosscoder, store.widths)
    generator = torch.Generator().manual_seed(recipe.training.seed)
    weights = initial_weights(widths, groups, decoder_norm=recipe.crosscoder.decoder_norm, generator=generator)
    on_device = {id(tensor): tensor.to(device).requires_grad_() for tensor in weights.values()}
    sparsity = recipe.crosscoder.sparsity
    crosscoder = Crosscoder(
        widths=widths,
        groups=groups,
        weights={name: on_device[id(tensor)] for name, tensor in weights.items()},
        normaliser={},
        threshold={},
        # L1 and JumpReLU select by the activation itself.
        rank_by=sparsity.rank_by if sparsity.kind in ("batch_topk", "topk") else "activation",
        aggregation=recipe.crosscoder.aggregation,
        differences=differences,
    )
    if residuals is not None:
        crosscoder.normaliser = residuals.own
        return crosscoder
    normalisers = estimate_normalisers(
        recipe.crosscoder, store, widths, lambda rows, source: crosscoder.with_differences(rows)[source]
    )
    crosscoder.normaliser = {source: normaliser.to(device) for source, normaliser in normalisers.items()}
    return crosscoder


def _divergence(step: int, learning_rate: float) -> str:
    """What to say of a training whose loss was not a number at a step."""
    if step == 1:
        return (
            "The training cannot begin: its first loss is not a number. The activations or "
            "crosscoder.decoder_norm are too large or too small for float32; check the sources' hookpoints and dtype."
        )
    return (
        f"The training diverged: its loss at step {step:,} is not a number, with training.learning_rate "
        f"{learning_rate:g}. Set it to {learning_rate / 10:.2g} or less and run again."
    )


def clip_gradient(optimiser: torch.optim.Adam, max_norm: float, *, in_step: bool = False) -> None:
    """Scale all gradients by one factor so that their global norm is at most `max_norm`; smaller ones stay untouched.

    torch.nn.utils.clip_grad_norm_ always multiplies, which is one more pass over every gradient. With `in_step` the
    next fused step of Adam applies the factor, which stays on the device, so that nothing waits for it.
    """
    weights = [weight for parameter_group in optimiser.param_groups for weight in parameter_group["params"]]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    # Norms of rows first: threads split the rows, and short sums in fp32 stay accurate.
    norm = torch.nn.utils.get_total_norm([torch.linalg.vector_norm(gradient, dim=-1) for gradient in gradients])
    if in_step:
        optimiser.grad_scale = (norm / max_norm).clamp_min(1.0)  # type: ignore[attr-defined]
    elif norm > max_norm:
        torch._foreach_mul_(gradients, float(max_norm / norm))


def product_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Precision of the dense products in a step."""
    name = recipe.training.precision
    return compute_dtype(device) if name == "auto" else getattr(torch, name)
