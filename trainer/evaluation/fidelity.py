"""Fidelity: what a language model loses when its activations are replaced by their reconstruction.

While a model reads a held-out sequence, its activation at every position that has a row is replaced: by what the
crosscoder makes of the row, by zero, or by the source's mean. All other positions keep their own activation: special
and template tokens, places where the tokenizers disagree, outlying norms. Codes are joint, so all sources read a
sequence before any is replaced; then one source at a time is. Scored are predictions made at replaced positions.
"""

import inspect
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
"""What an activation is replaced with."""
SCORED = 128
"""Predictions scored in one sequence at most, spread evenly: logits of large vocabularies are dear."""
CHUNK = 32
"""Predictions whose logits are held in fp32 at a time; 32 MiB for each condition with 262,144 tokens."""

Rebuild = Callable[[Rows], Rows]
"""Raw activations [rows, width] of all sources to the reconstruction of some of them, also raw."""
Run = Callable[[Edit], Tensor]
"""Runs a model on one sequence with an edit at its hookpoint; gives the scored logits [predictions, vocabulary]."""


@dataclass(frozen=True)
class Passage:
    """A held-out sequence as every source reads it."""

    ids: dict[str, Tensor]
    """Token ids by source int64 [tokens]."""
    at: dict[str, Tensor]
    """Positions by source that have a row int64 [rows]; the same rows in all sources."""

    def scored(self, source: str) -> Tensor:
        """Positions of the source whose predictions are scored: they have a row and a next token [predictions]."""
        at = self.at[source]
        at = at[at < len(self.ids[source]) - 1]
        return at[_spread(len(at), SCORED)]


@dataclass
class Losses:
    """Sums over the scored predictions of one source, in nats, and counts."""

    cross_entropy: Tensor = field(default_factory=lambda: torch.zeros(1 + len(CONDITIONS), dtype=torch.float64))
    """Of the next token: with the model's own activations, then under each condition."""
    divergence: Tensor = field(default_factory=lambda: torch.zeros(len(CONDITIONS), dtype=torch.float64))
    """KL divergence of the prediction under each condition from the model's own."""
    predictions: int = 0
    replaced: int = 0
    """Positions whose activation was replaced."""
    tokens: int = 0

    def add(self, clean: Tensor, others: Sequence[Tensor], following: Tensor) -> None:
        """Count scored logits in: clean and per condition [predictions, vocabulary], and the tokens that came next."""
        self.predictions += len(following)
        for part in zip(*(x.split(CHUNK) for x in (clean, following, *others)), strict=True):
            own, wanted, changed = part[0].float(), part[1][:, None], part[2:]
            own = own.log_softmax(dim=1)
            chance = own.exp()
            self.cross_entropy[0] -= float(own.gather(1, wanted).double().sum())
            for number, logits in enumerate(changed):
                other = logits.float().log_softmax(dim=1)
                self.cross_entropy[1 + number] -= float(other.gather(1, wanted).double().sum())
                self.divergence[number] += float(torch.linalg.vecdot(chance, own - other).double().sum())

    def measures(self, source: str) -> list[dict[str, Any]]:
        """Rows of the results' evaluation table; no loss recovered from an ablation that did no harm."""
        own, *changed = (self.cross_entropy / self.predictions).tolist()
        found = {"cross_entropy": own}
        found |= {f"cross_entropy_{name}": value for name, value in zip(CONDITIONS, changed, strict=True)}
        rebuilt, *ablated = changed
        for name, value in zip(CONDITIONS[1:], ablated, strict=True):
            if value > own:
                found[f"loss_recovered_{name}"] = 1 - (rebuilt - own) / (value - own)
        divergences = (self.divergence / self.predictions).tolist()
        found |= {f"kl_{name}": value for name, value in zip(CONDITIONS, divergences, strict=True)}
        found["positions_replaced"] = self.replaced / self.tokens
        return [{"source": source, "measure": measure, "value": value} for measure, value in found.items()]


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
    """Measures on some held-out sequences, spread over the split, for every source that is reconstructed.

    `sources` are whole models of all sources of the store, and there is no `obstacle`.
    """
    passages, means = held_out_passages(store, sources, sequences)

    def rebuild(rows: Rows) -> Rows:
        return crosscoder.decode(crosscoder.encode(rows))

    losses = {source.name: Losses() for source in sources if source.name in crosscoder.targets}
    with progress.task("evaluate: loss of the models", total=len(passages), unit="sequences") as task:
        for passage in passages:
            measure(passage, sources, rebuild, means, losses)
            task.advance(1)
    return [row for name, sums in losses.items() if sums.predictions for row in sums.measures(name)]


@torch.inference_mode()
def measure(
    passage: Passage, sources: Sequence[Source], rebuild: Rebuild, means: Rows, losses: dict[str, Losses]
) -> None:
    """Count one sequence in, for the sources that `losses` names; `means` are their mean activations [width]."""
    rows: Rows = {}
    clean: Rows = {}
    runs: dict[str, Run] = {}
    for source in sources:
        hookpoint = locate(source, source.recipe.hookpoint, source.recipe.layer)
        ids, at = passage.ids[source.name].to(source.device), passage.at[source.name].to(source.device)
        if source.name not in losses:
            rows[source.name] = read(source, hookpoint, ids[None])[0, at].cpu()
            continue
        runs[source.name] = _runner(source, hookpoint, ids, passage.scored(source.name).to(source.device))
        rows[source.name], clean[source.name] = _own(runs[source.name], at)
    rebuilt = rebuild(rows)
    for name, sums in losses.items():
        values = (rebuilt[name], torch.zeros_like(means[name]), means[name])
        others = [runs[name](_replacing(passage.at[name], value)) for value in values]
        sums.add(clean[name], others, passage.ids[name][passage.scored(name) + 1].to(clean[name].device))
        sums.replaced += len(passage.at[name])
        sums.tokens += len(passage.ids[name])


def held_out_passages(store: ActivationStore, sources: Sequence[Source], sequences: int) -> tuple[list[Passage], Rows]:
    """At most so many held-out sequences, spread evenly, and every source's mean over all held-out rows [width]."""
    places, sums = [], {source.name: torch.zeros(source.width, dtype=torch.float64) for source in sources}
    for block in store.blocks("held_out"):
        assert block.sequence is not None, "rows of a store with texts have places"
        assert block.byte_end is not None, "and their ends"
        places.append(torch.stack([block.sequence, block.byte_end]).long())
        for name in sums:
            sums[name] += block.rows[name].sum(dim=0, dtype=torch.float64)
    sequence, byte_end = torch.cat(places, dim=1)
    every = sequence.unique()
    chosen = every[_spread(len(every), sequences)]
    table = store.sequences(only=chosen.tolist())
    assert table is not None, "there is no obstacle"
    order = [source.name for source in store.sources]
    special = {source.name: torch.tensor(source.tokenizer.all_special_ids, dtype=torch.long) for source in sources}
    passages = []
    for line in table.select(["sequence", "tokens", "token_ids"]).to_pylist():
        ids = {name: torch.tensor(line["token_ids"][order.index(name)]) for name in special}
        ends = {name: [token["byte_end"] for token in line["tokens"][order.index(name)]] for name in special}
        anchors = byte_end[sequence == line["sequence"]].sort().values.numpy()
        at = {name: torch.from_numpy(positions(np.asarray(ends[name]), anchors)) for name in special}
        keep = torch.stack([~torch.isin(ids[n][at[n]], special[n]) for n in special]).all(dim=0)
        passages.append(Passage(ids, {name: where[keep] for name, where in at.items()}))
    return passages, {name: (total / len(sequence)).float() for name, total in sums.items()}


def _spread(count: int, wanted: int) -> Tensor:
    """Indices of at most `wanted` of so many things, spread evenly int64 [n]."""
    wanted = min(wanted, count)
    return torch.arange(wanted) * count // max(wanted, 1)


def logits_at(source: Source, ids: Tensor, at: Tensor) -> Tensor:
    """What a source predicts after some positions [n] of a sequence [tokens]: logits [n, vocabulary], in its dtype."""
    if "logits_to_keep" in inspect.signature(source.model.forward).parameters:
        found = source.model(input_ids=ids[None], use_cache=False, logits_to_keep=at).logits[0]
    else:
        found = source.model(input_ids=ids[None], use_cache=False).logits[0, at]
    logits: Tensor = found
    return logits


def _runner(source: Source, hookpoint: Hookpoint, ids: Tensor, scored: Tensor) -> Run:
    """How to run a source on a sequence [tokens]; only the scored positions go through the head."""

    def run(edit: Edit) -> Tensor:
        with editing(source, hookpoint, edit):
            return logits_at(source, ids, scored)

    return run


def _own(run: Run, at: Tensor) -> tuple[Tensor, Tensor]:
    """The source's own activations at some positions [rows, width], and the scored logits they lead to."""
    seen: list[Tensor] = []

    def look(activation: Tensor) -> Tensor:
        seen.append(activation[0, at].cpu())
        return activation

    logits = run(look)
    return seen[0], logits


def _replacing(at: Tensor, value: Tensor) -> Edit:
    """Put `value` ([rows, width], or [width] for all rows) at some positions and leave the others."""

    def edit(activation: Tensor) -> Tensor:
        changed = activation.clone()
        changed[0, at.to(activation.device)] = value.to(activation.device, activation.dtype)
        return changed

    return edit
