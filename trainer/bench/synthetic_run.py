"""Synthetic run: a results file of any size, shaped like a real one and written the same way, without any model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.analysis.claims.contrast import Contrast
from trainer.analysis.claims.verdict import FeatureStats, Judgement, judge
from trainer.analysis.pairs.agreement import BINS
from trainer.analysis.per_feature.contexts import keep
from trainer.analysis.per_feature.decoder_norms import OTHER, SHARED, DecoderNorms, owners
from trainer.analysis.per_feature.firings import RowMetadata, measure
from trainer.analysis.per_feature.histogram import histogram
from trainer.analysis.per_feature.windows import Windows, sequence_columns
from trainer.analysis.rows.codes import FeatureCodes
from trainer.bench.synthetic_text import Vocabulary, synthetic_text
from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.results.draft import EvaluationRow, ResultsDraft, SourceRow, publishing
from trainer.run.folder import RunFolder, published

SOURCES = (
    SourceRow(0, "first", "synthetic", None, "resid_post", 15, 576, 0.1),
    SourceRow(1, "second", "synthetic", None, "resid_post", 9, 640, 0.1),
)
TOP, PER_QUANTILE = 20, 8
KEPT = TOP + 5 * PER_QUANTILE
"""Contexts per feature."""
CLUSTERS, CLUSTER = (100, 300), 3
"""Places where a feature fires, at least and at most, and rows at each of them."""
WORDS = 200
"""Words in a sequence."""
RANGE = 512
"""Features made at a time."""
NEIGHBOURS, LOGITS, OTHER_RUNS = 5, 10, 3
MEASURES = (
    "firings",
    "density",
    "max_activation",
    "mean_activation",
    "template_share",
    "first_token_share",
    "documents",
    "main_corpus_share",
    "main_language_share",
)


@dataclass(frozen=True)
class SyntheticRun:
    """What was published."""

    file: Path
    words: tuple[str, ...]
    """The words of the text, commonest first, to search for."""


def publish_synthetic_run(folder: RunFolder, *, features: int, seed: int = 0) -> SyntheticRun:
    """Publish a run of two sources with KEPT contexts for every living feature (one in fifty is dead).

    There is one sequence for every four features, at least 64.
    """
    chance = np.random.default_rng(seed)
    recipe = parse_recipe(
        {
            "name": "synthetic",
            "crosscoder": {"features": features},
            "analysis": {"contexts": {"top": TOP, "per_quantile": PER_QUANTILE}, "logits": LOGITS},
        },
        origin="the bench",
    )
    with published(folder.recipe) as draft:
        draft.write_text(recipe.to_yaml(), encoding="utf-8")
    texts, places, vocabulary = synthetic_text(max(features // 4, 64), WORDS, chance)
    with publishing(folder) as results:
        results.add_run(recipe, folder.run)
        results.add_rows("source", SOURCES)
        evaluation = [EvaluationRow(source.source, "variance_explained", 0.8) for source in SOURCES]
        results.add_rows("evaluation", evaluation)
        results.add("sequence", sequence_columns(texts, np.arange(texts.sequences)))
        windows = Windows(places, texts, recipe.analysis.contexts.window)
        ground = RowMetadata.of(len(places.sequence), places, texts)
        results.add("text_part", ground.text_parts())
        for first in range(0, features, RANGE):
            codes = firings(first, min(RANGE, features - first), len(places.sequence), chance)
            _add_range(results, codes, windows, recipe)
            _add_measures(results, codes, ground, recipe, chance)
            _add_words(results, codes, features, vocabulary, chance)
    file = folder.results()
    assert file is not None, "publishing leaves current.json behind"
    return SyntheticRun(file, tuple(word.strip() for word in vocabulary.words))


def firings(first: int, features: int, places: int, chance: np.random.Generator) -> FeatureCodes:
    """Firings of a range of features: clusters of neighbouring places, activations even between zero and their peak."""
    clusters = chance.integers(CLUSTERS[0], CLUSTERS[1] + 1, features)
    clusters[(first + np.arange(features)) % 50 == 49] = 0
    owner = np.repeat(np.arange(features), clusters)
    centre = chance.integers(0, places - CLUSTER, len(owner))
    key = (owner[:, None] * places + centre[:, None] + np.arange(CLUSTER)).ravel()
    key = np.unique(key)
    feature, row = key // places, key % places
    peak = 10 ** chance.uniform(0.3, 1.6, features)
    value = (peak[feature] * chance.uniform(0.01, 1, len(row))).astype(np.float32)
    start = np.searchsorted(feature, np.arange(features + 1))
    return FeatureCodes(first, start, row, value)


def _add_range(results: ResultsDraft, codes: FeatureCodes, windows: Windows, recipe: Recipe) -> None:
    """What the analysis writes of a range of features, by the same code."""
    results.add("histogram", histogram(codes))
    results.add("firing", windows.columns(codes, keep(codes, windows.places, recipe.analysis.contexts)))


def _add_measures(
    results: ResultsDraft, codes: FeatureCodes, ground: RowMetadata, recipe: Recipe, chance: np.random.Generator
) -> None:
    """What is measured of a range of features, with random decoder norms."""
    norms = _norms(codes.features, chance)
    measures = measure(codes, ground)
    owner = owners(norms.share, tuple(source.name for source in SOURCES), recipe.analysis)
    judged, facts = _judged(codes, measures, owner, recipe, chance)
    evidence = judged.columns()
    results.add("evidence", evidence | {"feature": evidence["feature"] + codes.first})
    rows = norms.columns([source.source for source in SOURCES])
    results.add("feature_source", rows | {"feature": rows["feature"] + codes.first})
    assert ground.places is not None, "synthetic text has places"
    for part in ground.parts:
        results.add(f"feature_{part.kind}", part.columns(codes.first, part.firings(codes, ground.places)))
    verdicts = {
        "owner": pa.array(owner),
        "verdict": pa.array(judged.verdict),
        "kind": pa.array(judged.kind, pa.string()),
        "q_value": facts.q_value,
        "readout_ratio": facts.contrast.ratio,
    }
    results.add("feature", _measured(measures, ground) | verdicts | _drawn(codes, chance))
    _add_agreement(results, codes.first + judged.claims, recipe.crosscoder.features or 1, chance)


def _judged(
    codes: FeatureCodes, measures: dict[str, np.ndarray], owner: list[str], recipe: Recipe, chance: np.random.Generator
) -> tuple[Judgement, FeatureStats]:
    """Every test of every claim of a living feature, by the rule that is in force, of facts that are drawn."""
    count = codes.features
    claims = np.array([name not in (SHARED, OTHER) for name in owner]) & (codes.counts > 0)
    p_value = np.where(claims, chance.uniform(0.001, 0.3, count), np.nan)
    own = np.where(claims, chance.uniform(0.01, 0.5, count), np.nan)
    facts = FeatureStats(
        contrast=Contrast(own, own * chance.uniform(0, 1.2, count), 0.002),
        p_value=p_value,
        q_value=p_value / 2,
        decoys=np.full(count, recipe.analysis.decoys, np.int64),
        twin=chance.uniform(0, 0.6, count),
        nu_error=chance.uniform(0, 0.3, count),
        nu_reconstruction=chance.uniform(0, 0.6, count),
        found_again=chance.integers(0, OTHER_RUNS + 1, count) / OTHER_RUNS,
        other_runs=np.full(count, OTHER_RUNS, np.int64),
        **{name: measures[name] for name in ("firings", "documents", "density", "template_share", "first_token_share")},
    )
    return judge(claims, facts, recipe.analysis.verdict), facts


def _add_agreement(results: ResultsDraft, claims: np.ndarray, features: int, chance: np.random.Generator) -> None:
    """Every cell of the table of every claim and some other feature."""
    cells = np.arange(BINS * BINS)
    columns = {
        "feature": np.repeat(claims, len(cells)),
        "other": np.repeat(chance.integers(0, features, len(claims)), len(cells)),
        "bin": np.tile(cells // BINS, len(claims)),
        "other_bin": np.tile(cells % BINS, len(claims)),
        "rows": chance.integers(1, 500, len(claims) * len(cells)),
    }
    results.add("agreement", columns)


def _measured(measures: dict[str, np.ndarray], ground: RowMetadata) -> dict[str, np.ndarray | pa.Array]:
    """Columns of the table `feature` that follow from the firings."""
    names = {f"main_{part.kind}": np.array([*part.names, None], object) for part in ground.parts}
    return {name: measures[name] for name in MEASURES} | {
        name: pa.array(known[measures[name]], pa.string()) for name, known in names.items()
    }


def _drawn(codes: FeatureCodes, chance: np.random.Generator) -> dict[str, np.ndarray | pa.Array]:
    """The other columns of the table `feature`."""
    groups = pa.array(["shared", *(source.name for source in SOURCES)])
    return {
        "feature": codes.first + np.arange(codes.features),
        "group_name": groups.take(pa.array(chance.integers(0, len(groups), codes.features))),
        "content_hash": pa.array([f"{codes.first + index:016x}" for index in range(codes.features)]),
        "coherence": chance.uniform(0.01, 0.3, codes.features),
        "found_in": chance.integers(0, OTHER_RUNS + 1, codes.features),
        "looked_in": np.full(codes.features, OTHER_RUNS),
        "score": np.where(codes.counts > 0, chance.uniform(0, 1, codes.features), np.nan),
    }


def _norms(features: int, chance: np.random.Generator) -> DecoderNorms:
    """Seven in ten write both sources about alike, the rest one of them alone."""
    share = np.clip(chance.normal(0.5, 0.1, features), 0.02, 0.98)
    kind = chance.uniform(size=features)
    share = np.where(kind < 0.7, share, np.where(kind < 0.85, 0.0, 1.0))
    norm = chance.uniform(0.7, 1.3, features)
    both = np.stack([norm * (1 - share), norm * share], axis=1)
    return DecoderNorms(both, both)


def _add_words(
    results: ResultsDraft, codes: FeatureCodes, features: int, vocabulary: Vocabulary, chance: np.random.Generator
) -> None:
    """Neighbours and logit effects of the living features of a range, drawn at random."""
    living = codes.first + np.flatnonzero(codes.counts)
    kinds = np.tile(["twin", "similar"], len(living) * NEIGHBOURS)
    count = len(kinds)
    neighbour = {
        "feature": np.repeat(living, 2 * NEIGHBOURS),
        "other": chance.integers(0, features, count),
        "kind": kinds.tolist(),
        "cosine": chance.uniform(0.1, 0.9, count),
        "correlation": chance.uniform(0.1, 0.9, count),
    }
    results.add("neighbour", neighbour)
    ranks = np.concatenate([np.arange(1, LOGITS + 1), -np.arange(1, LOGITS + 1)])
    rank = np.tile(ranks, len(living) * len(SOURCES))
    token = chance.integers(0, len(vocabulary.words), len(rank))
    logit = {
        "feature": np.repeat(living, len(SOURCES) * len(ranks)),
        "source": np.tile(np.repeat([source.source for source in SOURCES], len(ranks)), len(living)),
        "rank": rank,
        "token": vocabulary.array.take(pa.array(token)),
        "effect": (3.0 / rank).astype(np.float32),
    }
    results.add("logit", logit)
