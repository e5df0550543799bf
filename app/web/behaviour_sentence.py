"""Puts how far apart the predictions of a run's models are into one sentence of its overview."""

from collections.abc import Sequence

from app.results.runs.baselines import CorpusDivergence, SourcePair
from app.results.runs.passages import STRONGEST

SAME = 1e-6
"""Nats up to which predictions are the same: rounding leaves as much."""
BETTER = 0.005
"""Nats per byte from which on one model is said to expect some text better."""


def behaviour_sentence(pairs: Sequence[SourcePair]) -> str | None:
    """How far apart every pair of models predicts the same text, and which expects it better; None without pairs."""
    return " ".join(_sentence(pair) for pair in pairs) or None


def _sentence(pair: SourcePair) -> str:
    whole, *parts = pair.parts
    if _apart(whole) <= SAME:
        return f"{pair.base} and {pair.source} predict the same text alike: no difference beyond rounding."
    unit = f"nats apart (of {STRONGEST:.2f} at most)" if pair.outcome else "nats per byte apart in surprise"
    about = f"On the same text {pair.base} and {pair.source} predict what comes next {_apart(whole):.2g} {unit}"
    if len(parts) > 1:
        most = max(parts, key=_apart)
        about += f", most in {most.corpus} ({_apart(most):.2g})"
    better = [clause for name in (pair.base, pair.source) if (clause := _better(pair, parts, name))]
    return "; ".join([about, *better]) + "."


def _apart(part: CorpusDivergence) -> float:
    return part.apart if part.jensen_shannon is None else part.jensen_shannon


def _better(pair: SourcePair, parts: Sequence[CorpusDivergence], name: str) -> str | None:
    """Which corpus parts one of the models expects better, by how much; None where it does none to speak of."""
    sign = 1 if name == pair.source else -1
    gains = {part.corpus: sign * (part.base_surprise - part.source_surprise) for part in parts}
    clauses = [f"{corpus} ({gain:.2g})" for corpus, gain in gains.items() if gain >= BETTER]
    return f"{name} expects better, in nats per byte: {', '.join(clauses)}" if clauses else None
