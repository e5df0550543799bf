"""Compares two models' next-token or next-byte predictions on the same text.

Two measures. *Divergence* compares the predictive distributions at anchors: both KL divergences and Jensen-Shannon, in
nats, over the next token when the models have one vocabulary and over the next byte otherwise (`outcomes`). *Surprise*
is the negative log-likelihood of a span's tokens in nats, on the same bytes for every model, so it needs no common
vocabulary. It is an upper bound on that of the bytes, which other tokenisations may spell with a higher likelihood.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.baselines.outcomes import OutcomeSpace, pair_outcomes
from trainer.baselines.spans import AlignedSequence
from trainer.evaluation.fidelity import logits_at
from trainer.models.source import Source
from trainer.run.progress import Progress

CHUNK = 32
"""Predictions whose probabilities are in memory in fp32 at a time."""


class Divergences(NamedTuple):
    """Divergences of two predictive distributions, in nats [n]."""

    kl_from: Tensor
    """KL(base || source)."""
    kl_to: Tensor
    """KL(source || base)."""
    jensen_shannon: Tensor
    """Mean KL of both from their average: 0 for equal distributions, ln 2 for disjoint ones."""


@dataclass(frozen=True)
class SpanScores:
    """Scores of a pair of models on one sequence; NaN for spans that are not scored. Axes: N spans."""

    sequence: AlignedSequence
    kind: str
    """Outcomes of `divergence`, `token` or `byte`; empty when there is none."""
    divergence: np.ndarray | None
    """KL(base || source), KL(source || base) and Jensen-Shannon at the start of each span, nats [3, N]."""
    surprise: np.ndarray
    """Negative log-likelihood of each span under the base and the source, nats [2, N]."""


def divergences(base: Tensor, source: Tensor) -> Divergences:
    """Divergences of log-probabilities [n, K] over the same outcomes, clamped at 0."""
    middle = torch.logaddexp(base, source) - np.log(2)

    def kl(one: Tensor, other: Tensor) -> Tensor:
        value: Tensor = torch.linalg.vecdot(one.exp(), one - other)
        return value.clamp_min(0)

    return Divergences(kl(base, source), kl(source, base), (kl(base, middle) + kl(source, middle)) / 2)


def compare_models(
    base: Source, source: Source, indexes: tuple[int, int], sequences: Sequence[AlignedSequence], progress: Progress
) -> list[SpanScores]:
    """Scores a pair of models on every sequence with a scored span; `indexes` are the sources' indexes in the store."""
    outcomes = pair_outcomes(base.tokenizer, source.tokenizer)
    scores = []
    title = f"baselines: {base.name} and {source.name} on the same text"
    with progress.task(title, total=len(sequences), unit="sequences") as task:
        for sequence in sequences:
            if sequence.scored.any():
                scores.append(_score((base, source), indexes, sequence, outcomes))
            task.advance(1)
    return scores


@torch.inference_mode()
def _score(
    pair: tuple[Source, Source],
    indexes: tuple[int, int],
    sequence: AlignedSequence,
    outcomes: tuple[OutcomeSpace, OutcomeSpace] | None,
) -> SpanScores:
    predictions, surprise = [], []
    for number, (source, index) in enumerate(zip(pair, indexes, strict=True)):
        span_surprise, predicted = _predict(source, index, sequence, None if outcomes is None else outcomes[number])
        surprise.append(span_surprise)
        predictions.append(predicted)
    divergence = None
    if outcomes is not None:
        divergence = np.full((3, len(sequence.scored)), np.nan)
        divergence[:, sequence.scored] = torch.stack(divergences(*predictions)).double().numpy()
    kind = outcomes[0].kind if outcomes else ""
    return SpanScores(sequence, kind, divergence, np.stack(surprise))


def _predict(
    source: Source, index: int, sequence: AlignedSequence, outcomes: OutcomeSpace | None
) -> tuple[np.ndarray, Tensor]:
    """Surprise of every span, nats [N], and log-probabilities of the outcomes at scored spans' starts [scored, K]."""
    ids = torch.from_numpy(sequence.ids[index])
    predicted, span = sequence.predicted_tokens(index)
    logits = logits_at(source, ids.to(source.device), torch.from_numpy(predicted - 1).to(source.device))
    # The distribution over outcomes is taken where the first token of a span is predicted.
    begins = torch.from_numpy(np.diff(span, prepend=-1) > 0)
    losses, log_probabilities = [], []
    for part, targets, first in zip(*(x.split(CHUNK) for x in (logits, ids[predicted], begins)), strict=True):
        tokens = part.float().log_softmax(dim=1)
        losses.append(-tokens.gather(1, targets.to(tokens.device)[:, None])[:, 0].cpu())
        if outcomes is not None:
            log_probabilities.append(outcomes(tokens[first.to(tokens.device)]).cpu())
    surprise = np.full(len(sequence.scored), np.nan)
    surprise[sequence.scored] = 0
    np.add.at(surprise, span, torch.cat(losses).double().numpy())
    return surprise, torch.cat(log_probabilities) if log_probabilities else torch.zeros(0)


def divergence_rows(scores: Sequence[SpanScores], indexes: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of the table `baseline_divergence`: means per corpus part and overall; `indexes` are the pair's.

    Means that are not a number, because a model gave some of them, are left out.
    """
    corpora = sorted({one.sequence.corpus for one in scores})
    rows = []
    for corpus in [None, *corpora]:
        some = [one for one in scores if corpus in (None, one.sequence.corpus)]
        for measure, source, value, count in (mean for mean in _means(some) if np.isfinite(mean[2])):
            base, other = indexes if source is None else (None, indexes[source])
            rows.append(
                {"corpus": corpus, "base": base, "source": other, "measure": measure, "value": value, "n": count}
            )
    return rows


@np.errstate(invalid="ignore")
def _means(scores: Sequence[SpanScores]) -> list[tuple[str, int | None, float, int]]:
    """Measure, index in the pair (None for both), mean, and the number of spans it is over."""
    surprise = np.concatenate([one.surprise[:, one.sequence.scored] for one in scores], axis=1)
    length = np.concatenate([one.sequence.lengths[one.sequence.scored] for one in scores])
    size, count = float(length.sum()), len(length)
    means: list[tuple[str, int | None, float, int]] = [
        ("surprise", number, float(surprise[number].sum()) / size, count) for number in (0, 1)
    ]
    means.append(("surprise_apart", None, float(np.abs(surprise[1] - surprise[0]).sum()) / size, count))
    divergence = [one.divergence[:, one.sequence.scored] for one in scores if one.divergence is not None]
    if divergence:
        values = np.concatenate(divergence, axis=1).mean(axis=1)
        kind = scores[0].kind
        for name, value in zip(("kl_base_source", "kl_source_base", "jensen_shannon"), values, strict=True):
            means.append((f"{name}_{kind}", None, float(value), count))
    return means
