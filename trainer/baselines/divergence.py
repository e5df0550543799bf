"""Divergence: how differently the models go on from the same text, place by place.

Two measures. *Divergence* compares what two models expect next, at the places where a token of every source has just
ended: KL both ways and Jensen-Shannon, in nats, over the next token where both have one vocabulary and over the next
byte where not (`outcomes`). *Surprise* needs nothing in common but the text: what the tokens of a span cost a model,
in nats, over the same bytes for every model. It is a bound: another way to cut the same bytes might cost less.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.baselines.outcomes import Outcomes, pair_outcomes
from trainer.baselines.spans import Passage
from trainer.evaluation.fidelity import logits_at
from trainer.models.source import Source
from trainer.run.progress import Progress

CHUNK = 32
"""Predictions whose probabilities are held in fp32 at a time."""


class Divergences(NamedTuple):
    """What two predictions differ by, in nats [n]."""

    kl_from: Tensor
    """KL(base || source): what the base's expectation loses when the source's stands for it."""
    kl_to: Tensor
    """KL(source || base)."""
    jensen_shannon: Tensor
    """Mean KL of both from their average: 0 when equal, ln 2 when nothing is expected by both."""


@dataclass(frozen=True)
class Scores:
    """What a pair of models says of one passage; NaN where a span is not scored. Axes: N spans."""

    passage: Passage
    kind: str
    """`token` or `byte`: what `divergence` is over; empty when there is none."""
    divergence: np.ndarray | None
    """KL(base || source), KL(source || base) and Jensen-Shannon at the beginning of each span, nats [3, N]."""
    surprise: np.ndarray
    """Of the base and of the source over each span, nats [2, N]."""


def divergences(base: Tensor, source: Tensor) -> Divergences:
    """From log-probabilities [n, K] of the same outcomes; never below 0."""
    middle = torch.logaddexp(base, source) - np.log(2)

    def kl(one: Tensor, other: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vecdot(one.exp(), one - other)
        return found.clamp_min(0)

    return Divergences(kl(base, source), kl(source, base), (kl(base, middle) + kl(source, middle)) / 2)


def compare(
    base: Source, source: Source, indexes: tuple[int, int], passages: Many[Passage], progress: Progress
) -> list[Scores]:
    """A pair of models on every passage that has something to score; `indexes` are their places in the store."""
    outcomes = pair_outcomes(base.tokenizer, source.tokenizer)
    found = []
    title = f"baselines: {base.name} and {source.name} on the same text"
    with progress.task(title, total=len(passages), unit="sequences") as task:
        for passage in passages:
            if passage.scored.any():
                found.append(_scores((base, source), indexes, passage, outcomes))
            task.advance(1)
    return found


@torch.inference_mode()
def _scores(
    pair: tuple[Source, Source], indexes: tuple[int, int], passage: Passage, outcomes: tuple[Outcomes, Outcomes] | None
) -> Scores:
    expected, surprise = [], []
    for number, (source, index) in enumerate(zip(pair, indexes, strict=True)):
        cost, outcome = _expected(source, index, passage, None if outcomes is None else outcomes[number])
        surprise.append(cost)
        expected.append(outcome)
    divergence = None
    if outcomes is not None:
        divergence = np.full((3, len(passage.scored)), np.nan)
        divergence[:, passage.scored] = torch.stack(divergences(*expected)).double().numpy()
    kind = outcomes[0].kind if outcomes else ""
    return Scores(passage, kind, divergence, np.stack(surprise))


def _expected(source: Source, index: int, passage: Passage, outcomes: Outcomes | None) -> tuple[np.ndarray, Tensor]:
    """What every span costs a source, nats [N], and what it expects where scored spans begin, fp32 [scored, K]."""
    ids = torch.from_numpy(passage.ids[index])
    predicted, span = passage.predicted(index)
    logits = logits_at(source, ids.to(source.device), torch.from_numpy(predicted - 1).to(source.device))
    # The first token of every span is expected where the span before it has just ended.
    begins = torch.from_numpy(np.diff(span, prepend=-1) > 0)
    costs, expected = [], []
    for part, wanted, first in zip(*(x.split(CHUNK) for x in (logits, ids[predicted], begins)), strict=True):
        tokens = part.float().log_softmax(dim=1)
        costs.append(-tokens.gather(1, wanted.to(tokens.device)[:, None])[:, 0].cpu())
        if outcomes is not None:
            expected.append(outcomes(tokens[first.to(tokens.device)]).cpu())
    surprise = np.full(len(passage.scored), np.nan)
    surprise[passage.scored] = 0
    np.add.at(surprise, span, torch.cat(costs).double().numpy())
    return surprise, torch.cat(expected) if expected else torch.zeros(0)


def measures(scores: Many[Scores], names: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of the table `baseline_divergence`: means per corpus part and over all; `names` are the sources' indexes."""
    corpora = sorted({one.passage.corpus for one in scores})
    rows = []
    for corpus in [None, *corpora]:
        some = [one for one in scores if corpus in (None, one.passage.corpus)]
        for measure, source, value, count in _means(some):
            base, other = names if source is None else (None, names[source])
            rows.append(
                {"corpus": corpus, "base": base, "source": other, "measure": measure, "value": value, "n": count}
            )
    return rows


def _means(scores: Many[Scores]) -> list[tuple[str, int | None, float, int]]:
    """Measure, which of the pair it is of (None for both), value, and on how many places it rests."""
    surprise = np.concatenate([one.surprise[:, one.passage.scored] for one in scores], axis=1)
    length = np.concatenate([one.passage.length[one.passage.scored] for one in scores])
    size, count = float(length.sum()), len(length)
    found: list[tuple[str, int | None, float, int]] = [
        ("surprise", number, float(surprise[number].sum()) / size, count) for number in (0, 1)
    ]
    found.append(("surprise_apart", None, float(np.abs(surprise[1] - surprise[0]).sum()) / size, count))
    together = [one.divergence[:, one.passage.scored] for one in scores if one.divergence is not None]
    if together:
        values = np.concatenate(together, axis=1).mean(axis=1)
        kind = scores[0].kind
        for name, value in zip(("kl_base_source", "kl_source_base", "jensen_shannon"), values, strict=True):
            found.append((f"{name}_{kind}", None, float(value), count))
    return found
