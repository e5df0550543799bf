"""Measures a model's loss with its activations replaced by reconstructions, zeros or means.

While a model reads a held-out sequence, its activation at every position that has a row is replaced: by the
crosscoder's reconstruction, by zero, or by the source's mean. Positions without a row keep their activation: special
and template tokens, tokens that do not end at an anchor, outlying norms. Codes are joint, so all sources read a
sequence first; then activations are replaced in one source at a time. The predictions at replaced positions are scored.
"""

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.models.hookpoint import Edit, Hookpoint, editing, locate, read
from trainer.models.source import Source
from trainer.reading.alignment import positions
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, Rows

CONDITIONS = ("reconstruction", "zero", "mean")
"""Replacements of an activation."""
SCORED = 128
"""Most predictions scored per sequence, spread evenly: logits of large vocabularies need much memory."""
CHUNK = 32
"""Predictions whose logits are in memory in fp32 at a time: 32 MiB per condition with 262,144 tokens."""

Reconstruct = Callable[[Rows], Rows]
"""Maps raw activations [rows, width] of all sources to reconstructions of some of them, also raw."""
RunWithEdit = Callable[[Edit], Tensor]
"""Runs a model on one sequence with an edit at its hookpoint; returns the scored logits [predictions, vocabulary]."""


@dataclass(frozen=True)
class HeldOutSequence:
    """A held-out sequence with the tokens and rows of every source."""

    ids: dict[str, Tensor]
    """Token ids by source, int64 [tokens]."""
    positions: dict[str, Tensor]
    """Positions by source that have a row, int64 [rows]; the same rows in all sources."""

    def scored(self, source: str) -> Tensor:
        """Positions of the scored predictions, which have a row and a next token [predictions]."""
        positions = self.positions[source]
        positions = positions[positions < len(self.ids[source]) - 1]
        return positions[_evenly_spaced(len(positions), SCORED)]


@dataclass
class Losses:
    """Sums over the scored predictions of one source, in nats, and counts."""

    cross_entropy: Tensor = field(default_factory=lambda: torch.zeros(1 + len(CONDITIONS), dtype=torch.float64))
    """Of the next token: with the clean activations, then under each condition."""
    divergence: Tensor = field(default_factory=lambda: torch.zeros(len(CONDITIONS), dtype=torch.float64))
    """KL(clean prediction || prediction under each condition)."""
    predictions: int = 0
    replaced: int = 0
    """Positions whose activation was replaced."""
    tokens: int = 0

    def add(self, clean: Tensor, others: Sequence[Tensor], following: Tensor) -> None:
        """Adds scored logits, clean and per condition [predictions, vocabulary]; `following` are the next tokens."""
        self.predictions += len(following)
        for part in zip(*(x.split(CHUNK) for x in (clean, following, *others)), strict=True):
            clean_part, targets, changed = part[0].float(), part[1][:, None], part[2:]
            log_p = clean_part.log_softmax(dim=1)
            probability = log_p.exp()
            self.cross_entropy[0] -= float(log_p.gather(1, targets).double().sum())
            for number, logits in enumerate(changed):
                log_q = logits.float().log_softmax(dim=1)
                self.cross_entropy[1 + number] -= float(log_q.gather(1, targets).double().sum())
                self.divergence[number] += float(torch.linalg.vecdot(probability, log_p - log_q).double().sum())

    def measures(self, source: str) -> list[dict[str, Any]]:
        """Rows of the results' evaluation table; without loss recovered for ablations that do not raise the loss.

        Measures that are not a number, because some logits are not, are left out.
        """
        clean, *changed = (self.cross_entropy / self.predictions).tolist()
        values = {"cross_entropy": clean}
        values |= {f"cross_entropy_{name}": value for name, value in zip(CONDITIONS, changed, strict=True)}
        reconstructed, *ablated = changed
        for name, value in zip(CONDITIONS[1:], ablated, strict=True):
            if value > clean:
                values[f"loss_recovered_{name}"] = 1 - (reconstructed - clean) / (value - clean)
        divergences = (self.divergence / self.predictions).tolist()
        values |= {f"kl_{name}": value for name, value in zip(CONDITIONS, divergences, strict=True)}
        values["positions_replaced"] = self.replaced / self.tokens
        return [
            {"source": source, "measure": measure, "value": value}
            for measure, value in values.items()
            if math.isfinite(value)
        ]


def obstacle(store: ActivationStore, crosscoder: Crosscoder, models: Collection[str], sequences: int) -> str | None:
    """Why fidelity cannot be measured, or None; `models` are the sources whose models can be loaded."""
    if not sequences:
        return "evaluation.sequences is 0"
    if not models:
        return "the recipe has no sources"
    if missing := sorted(store.widths.keys() - set(models)):
        return f"the recipe has no model for {', '.join(missing)}"
    if not set(models) & set(crosscoder.targets):
        return "what the crosscoder reconstructs is no model's own activation"
    if not {"tokens", "token_ids"} <= store.sequence_columns():
        return "the activation store has no token ids"
    return None


def fidelity(
    store: ActivationStore, crosscoder: Crosscoder, sources: Sequence[Source], *, sequences: int, progress: Progress
) -> list[dict[str, Any]]:
    """Rows of the results' evaluation table for every reconstructed source, on evenly spread held-out sequences.

    `sources` are whole models of all sources of the store, and there is no `obstacle`.
    """
    chosen, means = held_out_sequences(store, sources, sequences)

    def reconstruct(rows: Rows) -> Rows:
        return crosscoder.reconstruct(rows, crosscoder.encode(rows))

    losses = {source.name: Losses() for source in sources if source.name in crosscoder.targets}
    with progress.task("evaluate: loss of the models", total=len(chosen), unit="sequences") as task:
        for sequence in chosen:
            add_sequence(sequence, sources, reconstruct, means, losses)
            task.advance(1)
    for name, sums in losses.items():
        if sums.predictions and not bool(sums.cross_entropy.isfinite().all()):
            progress.notify(f"evaluate: the loss of {name} is not a number on some text, and is left out")
    return [row for name, sums in losses.items() if sums.predictions for row in sums.measures(name)]


@torch.inference_mode()
def add_sequence(
    sequence: HeldOutSequence,
    sources: Sequence[Source],
    reconstruct: Reconstruct,
    means: Rows,
    losses: dict[str, Losses],
) -> None:
    """Adds one sequence to the losses, whose keys are the sources to measure; `means` are their means [width]."""
    rows: Rows = {}
    clean: Rows = {}
    runs: dict[str, RunWithEdit] = {}
    for source in sources:
        hookpoint = locate(source, source.recipe.hookpoint, source.recipe.layer)
        ids, positions = sequence.ids[source.name].to(source.device), sequence.positions[source.name].to(source.device)
        if source.name not in losses:
            rows[source.name] = read(source, hookpoint, ids[None])[0, positions].cpu()
            continue
        runs[source.name] = _runner(source, hookpoint, ids, sequence.scored(source.name).to(source.device))
        rows[source.name], clean[source.name] = _run_clean(runs[source.name], positions)
    reconstructed = reconstruct(rows)
    for name, sums in losses.items():
        values = (reconstructed[name], torch.zeros_like(means[name]), means[name])
        others = [runs[name](_replacing(sequence.positions[name], value)) for value in values]
        sums.add(clean[name], others, sequence.ids[name][sequence.scored(name) + 1].to(clean[name].device))
        sums.replaced += len(sequence.positions[name])
        sums.tokens += len(sequence.ids[name])


def held_out_sequences(
    store: ActivationStore, sources: Sequence[Source], sequences: int
) -> tuple[list[HeldOutSequence], Rows]:
    """At most `sequences` held-out sequences, evenly spread, and every source's mean over all held-out rows [width]."""
    row_order, sums = [], {source.name: torch.zeros(source.width, dtype=torch.float64) for source in sources}
    for block in store.blocks("held_out"):
        assert block.sequence is not None, "rows of a store with texts have a sequence"
        assert block.byte_end is not None, "rows of a store with texts have a byte end"
        row_order.append(torch.stack([block.sequence, block.byte_end]).long())
        for name in sums:
            sums[name] += block.rows[name].sum(dim=0, dtype=torch.float64)
    sequence, byte_end = torch.cat(row_order, dim=1)
    every_sequence = sequence.unique()
    chosen = every_sequence[_evenly_spaced(len(every_sequence), sequences)]
    table = store.sequences(only=chosen.tolist())
    assert table is not None, "`obstacle` requires a store with texts"
    order = [source.name for source in store.sources]
    special = {source.name: torch.tensor(source.tokenizer.all_special_ids, dtype=torch.long) for source in sources}
    aligned = []
    for line in table.select(["sequence", "tokens", "token_ids"]).to_pylist():
        ids = {name: torch.tensor(line["token_ids"][order.index(name)]) for name in special}
        ends = {name: [token["byte_end"] for token in line["tokens"][order.index(name)]] for name in special}
        anchors = byte_end[sequence == line["sequence"]].sort().values.numpy()
        at = {name: torch.from_numpy(positions(np.asarray(ends[name]), anchors)) for name in special}
        keep = torch.stack([~torch.isin(ids[n][at[n]], special[n]) for n in special]).all(dim=0)
        aligned.append(HeldOutSequence(ids, {name: source_positions[keep] for name, source_positions in at.items()}))
    return aligned, {name: (total / len(sequence)).float() for name, total in sums.items()}


def _evenly_spaced(count: int, wanted: int) -> Tensor:
    """Indices of at most `wanted` of `count` items, evenly spaced, int64 [n]."""
    wanted = min(wanted, count)
    return torch.arange(wanted) * count // max(wanted, 1)


def logits_at(source: Source, ids: Tensor, at: Tensor) -> Tensor:
    """Logits of a source at positions [n] of a sequence of ids [tokens]: [n, vocabulary], in its dtype."""
    if "logits_to_keep" in inspect.signature(source.model.forward).parameters:
        kept = source.model(input_ids=ids[None], use_cache=False, logits_to_keep=at).logits[0]
    else:
        kept = source.model(input_ids=ids[None], use_cache=False).logits[0, at]
    logits: Tensor = kept
    return logits


def _runner(source: Source, hookpoint: Hookpoint, ids: Tensor, scored: Tensor) -> RunWithEdit:
    """Binds a source to a sequence of ids [tokens]; only the scored positions go through the unembedding."""

    def run(edit: Edit) -> Tensor:
        with editing(source, hookpoint, edit):
            return logits_at(source, ids, scored)

    return run


def _run_clean(run: RunWithEdit, at: Tensor) -> tuple[Tensor, Tensor]:
    """The clean activations at positions `at` [rows, width], and the scored logits."""
    clean: list[Tensor] = []

    def record(activation: Tensor) -> Tensor:
        clean.append(activation[0, at].cpu())
        return activation

    logits = run(record)
    return clean[0], logits


def _replacing(at: Tensor, value: Tensor) -> Edit:
    """An edit that writes `value` ([rows, width], or [width] for all rows) at positions `at`."""

    def edit(activation: Tensor) -> Tensor:
        changed = activation.clone()
        changed[0, at.to(activation.device)] = value.to(activation.device, activation.dtype)
        return changed

    return edit
