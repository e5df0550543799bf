"""Claims: every feature that some source is said to lack, held against the decoys of its owner."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainer.analysis.claims.contrast import Contrast, contrast, slack_of
from trainer.analysis.claims.decoys import examine, transplants
from trainer.analysis.claims.latent_scaling import Scaling
from trainer.analysis.claims.q_values import most_doubtful, p_values, q_values
from trainer.analysis.claims.readout import Readout
from trainer.analysis.claims.verdict import FeatureStats, Judgement, judge, largest_ratio
from trainer.analysis.per_feature.decoder_norms import DecoderNorms, claims, holders, owners
from trainer.analysis.rows.cross_fit import TwoFold
from trainer.analysis.rows.moments import Moments
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore

ENOUGH_DECOYS = 100
"""A set of fewer decoys cannot tell small q-values and is not asked."""

Known = Mapping[str, np.ndarray]
"""How exclusive claims look that are known to be false: strengths by owner."""


@dataclass(frozen=True)
class Measures:
    """What is known of every feature beside its readouts [F]; NaN where something is not known."""

    firings: np.ndarray
    documents: np.ndarray
    density: np.ndarray
    template_share: np.ndarray
    first_token_share: np.ndarray
    twin: np.ndarray
    """Largest correlation with a feature of another owner."""

    @classmethod
    def without_text(cls, firings: np.ndarray, rows: int, twin: np.ndarray) -> "Measures":
        """For a store that has no documents."""
        unknown = np.full(len(firings), np.nan)
        return cls(firings, unknown, firings / max(rows, 1), unknown, unknown, twin)


@dataclass(frozen=True)
class JudgedClaims:
    """Claims after their trial. Axis F: features."""

    contrast: Contrast
    p_value: np.ndarray
    q_value: np.ndarray
    decoys: Known
    """Strengths of the transplanted decoys by owner."""
    judgement: Judgement


@dataclass(frozen=True)
class Ownership:
    """Which features are claimed, by decoder norms alone. Axes: F features, T reconstructed sources."""

    owner: list[str]
    claims: np.ndarray
    """Bool [F]."""
    holds: np.ndarray
    """Bool [F, T]."""

    @classmethod
    def of(cls, crosscoder: Crosscoder, norms: DecoderNorms, recipe: AnalysisRecipe) -> "Ownership":
        """By the recipe's thresholds."""
        written = [crosscoder.sources.index(name) for name in crosscoder.targets]
        owner = owners(norms.share[:, written], crosscoder.targets, recipe)
        return cls(owner, claims(owner, crosscoder.targets), holders(owner, crosscoder.targets))


@dataclass(frozen=True)
class ClaimInputs:
    """All that is known of a crosscoder's features before their claims are judged."""

    crosscoder: Crosscoder
    ownership: Ownership
    moments: Moments
    readouts: Mapping[str, Readout]
    """By source, of at least the crosscoder's targets."""
    measures: Measures
    scaling: Scaling | None = None
    found_again: np.ndarray | None = None
    """Share of the other runs that have each feature [F]."""
    other_runs: np.ndarray | int = 0
    """How many other runs there are, for each feature [F] or for all."""


def judge_claims(
    inputs: ClaimInputs,
    store: ActivationStore,
    recipe: AnalysisRecipe,
    *,
    known: Sequence[Known] = (),
    progress: Progress,
) -> JudgedClaims:
    """Judge all claims, held against decoys made here and against what is `known` to be false beside them.

    Takes one more pass over the store, for the decoys.
    """
    crosscoder, ownership = inputs.crosscoder, inputs.ownership
    mine = contrast(
        {name: inputs.readouts[name].score for name in crosscoder.targets}, ownership.holds, slack_of(inputs.moments)
    )
    decoys = _decoys(inputs, store, recipe, progress)
    nu_error, nu_reconstruction = _elsewhere(inputs.scaling, crosscoder, ownership.holds)
    unknown = np.full(len(ownership.owner), np.nan)
    facts = FeatureStats(
        mine,
        p_value=unknown,
        q_value=unknown,
        decoys=np.zeros(len(unknown), np.int64),
        nu_error=nu_error,
        nu_reconstruction=nu_reconstruction,
        found_again=unknown if inputs.found_again is None else inputs.found_again,
        other_runs=np.full(len(unknown), inputs.other_runs),
        **vars(inputs.measures),
    )
    p, q, count = doubts(
        ownership, mine, largest_ratio(facts, recipe.verdict), [decoys, *known], least=recipe.verdict.owner_readout
    )
    facts = replace(facts, p_value=p, q_value=q, decoys=count)
    return JudgedClaims(mine, p, q, decoys, judge(ownership.claims, facts, recipe.verdict))


def _decoys(inputs: ClaimInputs, store: ActivationStore, recipe: AnalysisRecipe, progress: Progress) -> Known:
    """Strengths of transplanted decoys for every owner that claims something; NaN for those that cannot be judged."""
    ownership, owner, least = inputs.ownership, np.array(inputs.ownership.owner), recipe.verdict.owner_readout
    readouts = {name: inputs.readouts[name] for name in inputs.crosscoder.targets}
    made = []
    for name in sorted(set(owner[ownership.claims])) if recipe.decoys else ():
        mine = ownership.claims & (owner == name)
        made.append(transplants(name, readouts, ownership.holds, mine, count=recipe.decoys, least=least))
    found = examine(
        store,
        inputs.crosscoder,
        [one for one in made if one is not None],
        inputs.measures.density,
        halves=TwoFold.of(store),
        of_rows=inputs.moments.of_rows,
        progress=progress,
    )
    return {name: np.where(one.own >= least, one.strength, np.nan) for name, one in found.items()}


def doubts(
    ownership: Ownership, contrast: Contrast, limit: np.ndarray, sets: Sequence[Known], *, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p-value, q-value and the number of decoys behind them [F], owner by owner.

    A claim whose readout ratio is above its limit counts as certainly false: it does not claim a difference that is
    worth the name. One of which the owner's own activations tell less than `least` cannot be judged. Of several sets of
    decoys the most doubtful decides. How small a p-value can be depends on the largest set alone: a smaller one is
    heard on claims that some decoy of its own matches, and one that is too small not at all.
    """
    owner = np.array(ownership.owner)
    p, q, count = np.full(len(owner), np.nan), np.full(len(owner), np.nan), np.zeros(len(owner), np.int64)
    for name in set(owner[ownership.claims]):
        mine = np.flatnonzero(ownership.claims & (owner == name))
        strong = np.where(contrast.own[mine] >= least, contrast.strength[mine], np.nan)
        able = [one[name][~np.isnan(one[name])] for one in sets if name in one]
        able = [one for one in able if len(one) >= ENOUGH_DECOYS]
        largest = max(map(len, able), default=0)
        ranks = [_heard(p_values(strong, one), len(one), largest) for one in able]
        beyond = contrast.ratio[mine] > limit[mine]
        p[mine] = most_doubtful(ranks, len(mine))
        q[mine] = q_values(np.where(beyond & ~np.isnan(p[mine]), 1.0, p[mine]))
        count[mine] = largest
    return p, q, count


def _heard(p: np.ndarray, decoys: int, largest: int) -> np.ndarray:
    """p-values of a set of decoys, NaN where it is smaller than another and none of its decoys is as strong."""
    silent = (decoys < largest) & (p <= 1 / (1 + decoys))
    return np.where(silent, np.nan, p)


def _elsewhere(scaling: Scaling | None, crosscoder: Crosscoder, holds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest nu of error and of reconstruction over the sources each claim leaves out [F]; NaN where not known."""
    if scaling is None:
        return np.full(len(holds), np.nan), np.full(len(holds), np.nan)
    written = [crosscoder.sources.index(name) for name in crosscoder.targets]

    def largest(nu: np.ndarray) -> np.ndarray:
        outside = np.where(holds | np.isnan(nu[:, written]), -np.inf, nu[:, written]).max(axis=1)
        return np.where(np.isinf(outside), np.nan, outside)

    return largest(scaling.nu_error), largest(scaling.nu_reconstruction)


def known_false(path: Path, ownership: Ownership) -> list[Known]:
    """Strengths of false claims from a run's `calibration.json`, for every owner; none when there is no such file.

    All sources of a null run are copies of one, so that whatever is claimed for any stands for all.
    """
    if not path.is_file():
        return []
    strengths = json.loads(path.read_text(encoding="utf-8"))["known_false"]
    owners = {name for name, claim in zip(ownership.owner, ownership.claims, strict=True) if claim}
    return [dict.fromkeys(owners, np.array(values, float)) for values in strengths.values()]
