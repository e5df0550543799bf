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
    expected: np.ndarray
    """Token that the base and the source expect most at the start of each span, int64 [2, N]; -1 where not scored."""

    @property
    def usable(self) -> np.ndarray:
        """Which spans are scored with numbers by both models, bool [N]; a model may give NaN."""
        finite = np.isfinite(self.surprise).all(axis=0)
        if self.divergence is not None:
            finite &= np.isfinite(self.divergence).all(axis=0)
        usable: np.ndarray = self.sequence.scored & finite
        return usable

    @property
    def apart(self) -> np.ndarray:
        """How far the models are apart on each span, nats [N].

        Jensen-Shannon divergence at its start or, where there is none, the absolute difference of both surprisals.
        """
        if self.divergence is not None:
            found: np.ndarray = self.divergence[2]
            return found
        with np.errstate(invalid="ignore"):
            distance: np.ndarray = np.abs(self.surprise[1] - self.surprise[0])
        return distance


def divergences(base: Tensor, source: Tensor) -> Divergences:
    """Divergences of log-probabilities [n, K] over the same outcomes, clamped at 0."""
    middle = torch.logaddexp(base, source) - np.log(2)

    def kl(one: Tensor, other: Tensor) -> Tensor:
        value: Tensor = torch.linalg.vecdot(one.exp(), one - other)
        return value.clamp_min(0)

    return Divergences(kl(base, source), kl(source, base), (kl(base, middle) + kl(source, middle)) / 2)


def compare_models(
    base: Source,
    others: Sequence[Source],
    indexes: tuple[int, Sequence[int]],
    sequences: Sequence[AlignedSequence],
    progress: Progress,
) -> list[list[SpanScores]]:
    """Scores each of some models against a base on every sequence with a scored span, by model.

    `indexes` are the base's and the others' in the store.
    """
    outcomes = [pair_outcomes(base.tokenizer, other.tokenizer) for other in others]
    scores: list[list[SpanScores]] = [[] for _ in others]
    title = f"baselines: {base.name} and {others[0].name} on the same text"
    with progress.task(title, total=len(sequences), unit="sequences") as task:
        for sequence in sequences:
            if sequence.scored.any():
                bases = _predict(base, indexes[0], sequence, [None if both is None else both[0] for both in outcomes])
                for number, (other, index) in enumerate(zip(others, indexes[1], strict=True)):
                    both = outcomes[number]
                    prediction = _predict(other, index, sequence, [None if both is None else both[1]])
                    pair = (bases.of(number), prediction.of(0))
                    scores[number].append(_compared(sequence, pair, both[0].kind if both else ""))
            task.advance(1)
    return scores


class _Prediction(NamedTuple):
    """What one model predicts on one sequence."""

    surprise: np.ndarray
    """Of every span, nats [N]; NaN for those not scored."""
    expected: np.ndarray
    """Most likely token at the start of every span, int64 [N]; -1 for those not scored."""
    outcomes: list[Tensor]
    """By event space, log-probabilities at scored spans' starts [scored, K]; empty without one."""

    def of(self, number: int) -> "_Prediction":
        """In one of the event spaces."""
        return self._replace(outcomes=self.outcomes[number : number + 1])


def _compared(sequence: AlignedSequence, pair: tuple[_Prediction, _Prediction], kind: str) -> SpanScores:
    divergence = None
    if kind:
        divergence = np.full((3, len(sequence.scored)), np.nan)
        both = divergences(pair[0].outcomes[0], pair[1].outcomes[0])
        divergence[:, sequence.scored] = torch.stack(both).double().numpy()
    surprise, expected = (np.stack([getattr(one, name) for one in pair]) for name in ("surprise", "expected"))
    return SpanScores(sequence, kind, divergence, surprise, expected)


@torch.inference_mode()
def _predict(
    source: Source, index: int, sequence: AlignedSequence, outcomes: Sequence[OutcomeSpace | None]
) -> _Prediction:
    ids = torch.from_numpy(sequence.ids[index])
    predicted, span = sequence.predicted_tokens(index)
    # Nothing after the last scored token is read: spans at the end of a long sequence may not be scored.
    ids = ids[: int(predicted[-1]) + 1]
    logits = logits_at(source, ids.to(source.device), torch.from_numpy(predicted - 1).to(source.device))
    # The distribution over outcomes is taken where the first token of a span is predicted.
    begins = torch.from_numpy(np.diff(span, prepend=-1) > 0)
    losses, likeliest = [], []
    log_probabilities: list[list[Tensor]] = [[] for _ in outcomes]
    for part, targets, first in zip(*(x.split(CHUNK) for x in (logits, ids[predicted], begins)), strict=True):
        tokens = part.float().log_softmax(dim=1)
        losses.append(-tokens.gather(1, targets.to(tokens.device)[:, None])[:, 0].cpu())
        starts = tokens if bool(first.all()) else tokens[first.to(tokens.device)]
        likeliest.append(starts.argmax(dim=1).cpu())
        for number, one in enumerate(outcomes):
            if one is not None:
                log_probabilities[number].append(one(starts).cpu())
    surprise, expected = np.full(len(sequence.scored), np.nan), np.full(len(sequence.scored), -1)
    surprise[sequence.scored] = 0
    np.add.at(surprise, span, torch.cat(losses).double().numpy())
    expected[sequence.scored] = torch.cat(likeliest).numpy()
    return _Prediction(
        surprise, expected, [torch.cat(parts) if parts else torch.zeros(0) for parts in log_probabilities]
    )


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
