"""Publishes a synthetic run of any size, written by the code of real runs but without models."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.analysis.claims.evidence import Estimate
from trainer.analysis.claims.verdict import FeatureStats, Judgement, judge
from trainer.analysis.pairs.agreement import BINS
from trainer.analysis.per_feature.contexts import Windows, select_firings, sequence_columns
from trainer.analysis.per_feature.decoder_norms import OTHER, SHARED, DecoderNorms, owners
from trainer.analysis.per_feature.firings import RowMetadata, firing_measures
from trainer.analysis.per_feature.histogram import histogram
from trainer.analysis.rows.codes import FeatureCodes, is_run_start
from trainer.bench.synthetic_text import Vocabulary, synthetic_text
from trainer.recipe.recipe import Recipe, parse_recipe
from trainer.results.draft import EvaluationRow, ResultsDraft, SourceRow, publishing
from trainer.run.folder import RunFolder, atomic_write

SOURCES = (
    SourceRow(0, "first", "synthetic", None, "resid_post", 15, 576, 0.1),
    SourceRow(1, "second", "synthetic", None, "resid_post", 9, 640, 0.1),
)
TOP, PER_QUANTILE = 20, 8
CONTEXTS_PER_FEATURE = TOP + 5 * PER_QUANTILE
"""Contexts per feature."""
CLUSTERS, CLUSTER = (100, 300), 3
"""Clusters of firings per feature, at least and at most, and neighbouring rows in each."""
SEQUENCES, WORDS = (64, 16_384), 200
"""Sequences, at least and at most, and words per sequence."""
CHUNK = 512
"""Features generated at a time."""
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
    """A published synthetic run."""

    file: Path
    words: tuple[str, ...]
    """Words of the text, most frequent first, as search terms."""


def publish_synthetic_run(folder: RunFolder, *, features: int, seed: int = 0) -> SyntheticRun:
    """Publish a run of two sources with CONTEXTS_PER_FEATURE contexts per live feature (one in fifty is dead).

    There is one sequence for every four features, within SEQUENCES.
    """
    rng = np.random.default_rng(seed)
    recipe = parse_recipe(
        {
            "name": "synthetic",
            "crosscoder": {"features": features},
            "analysis": {"contexts": {"top": TOP, "per_quantile": PER_QUANTILE}, "logits": LOGITS},
        },
        origin="the bench",
    )
    with atomic_write(folder.recipe) as draft:
        draft.write_text(recipe.to_yaml(), encoding="utf-8")
    texts, row_order, vocabulary = synthetic_text(min(max(features // 4, SEQUENCES[0]), SEQUENCES[1]), WORDS, rng)
    with publishing(folder) as results:
        results.add_run(recipe, folder.run_id)
        results.add_rows("source", SOURCES)
        evaluation = [EvaluationRow(source.source, "variance_explained", 0.8) for source in SOURCES]
        results.add_rows("evaluation", evaluation)
        for first in range(0, texts.sequences, CHUNK):
            some = np.arange(first, min(first + CHUNK, texts.sequences))
            results.add("sequence", sequence_columns(texts, some))
        windows = Windows(row_order, texts, recipe.analysis.contexts.window)
        row_metadata = RowMetadata.from_texts(len(row_order.sequence), row_order, texts)
        results.add("text_part", row_metadata.text_part_columns())
        for first in range(0, features, CHUNK):
            codes = firings(first, min(CHUNK, features - first), len(row_order.sequence), rng)
            _add_contexts(results, codes, windows, recipe)
            _add_measures(results, codes, row_metadata, recipe, rng)
            _add_neighbours_and_logits(results, codes, features, vocabulary, rng)
    file = folder.results()
    assert file is not None, "publishing leaves current.json behind"
    return SyntheticRun(file, tuple(word.strip() for word in vocabulary.words))


def firings(first: int, features: int, rows: int, rng: np.random.Generator) -> FeatureCodes:
    """Random firings of a range of features in clusters of neighbouring rows, uniform up to each feature's peak."""
    clusters = rng.integers(CLUSTERS[0], CLUSTERS[1] + 1, features)
    clusters[(first + np.arange(features)) % 50 == 49] = 0
    owner = np.repeat(np.arange(features), clusters)
    centre = rng.integers(0, rows - CLUSTER, len(owner))
    key = (owner[:, None] * rows + centre[:, None] + np.arange(CLUSTER)).ravel()
    key.sort()
    key = key[is_run_start(key)]
    feature, row = key // rows, key % rows
    peak = 10 ** rng.uniform(0.3, 1.6, features)
    value = (peak[feature] * rng.uniform(0.01, 1, len(row))).astype(np.float32)
    start = np.searchsorted(feature, np.arange(features + 1))
    return FeatureCodes(first, start, row, value)


def _add_contexts(results: ResultsDraft, codes: FeatureCodes, windows: Windows, recipe: Recipe) -> None:
    """Histograms and contexts of a range of features, by the code of the analysis."""
    results.add("histogram", histogram(codes))
    results.add("firing", windows.columns(codes, select_firings(codes, windows.row_order, recipe.analysis.contexts)))


def _add_measures(
    results: ResultsDraft, codes: FeatureCodes, row_metadata: RowMetadata, recipe: Recipe, rng: np.random.Generator
) -> None:
    """Per-feature statistics of a range of features, with random decoder norms and verdicts."""
    norms = _random_decoder_norms(codes.features, rng)
    measures = firing_measures(codes, row_metadata)
    owner = owners(norms.share, tuple(source.name for source in SOURCES), recipe.analysis)
    judgement, stats = _random_verdicts(codes, measures, owner, recipe, rng)
    evidence = judgement.columns()
    results.add("evidence", evidence | {"feature": evidence["feature"] + codes.first})
    rows = norms.columns([source.source for source in SOURCES])
    results.add("feature_source", rows | {"feature": rows["feature"] + codes.first})
    assert row_metadata.row_order is not None, "synthetic text has a row order"
    for part in row_metadata.partitions:
        results.add(f"feature_{part.kind}", part.columns(codes.first, part.firings(codes, row_metadata.row_order)))
    verdicts = {
        "owner": pa.array(owner),
        "verdict": pa.array(judgement.verdict),
        "kind": pa.array(judgement.kind, pa.string()),
        "probe_ratio": stats.ratio.value,
        "probe_low": stats.ratio.low,
        "probe_high": stats.ratio.high,
        "excess": stats.excess.value,
        "excess_low": stats.excess.low,
        "excess_high": stats.excess.high,
        "fdr": stats.fdr,
    }
    results.add("feature", _firing_columns(measures, row_metadata) | verdicts | _random_columns(codes, rng))
    _add_agreement(results, codes.first + judgement.claims, recipe.crosscoder.features or 1, rng)


def _random_verdicts(
    codes: FeatureCodes, measures: dict[str, np.ndarray], owner: list[str], recipe: Recipe, rng: np.random.Generator
) -> tuple[Judgement, FeatureStats]:
    """Judges every claim of the live features by the real rule, on random statistics."""
    count = codes.features
    claims = np.array([name not in (SHARED, OTHER) for name in owner]) & (codes.counts > 0)

    def estimate(low: float, high: float) -> Estimate:
        value = np.where(claims, rng.uniform(low, high, count), np.nan)
        return Estimate(value, 0.9 * value, 1.1 * value)

    stats = FeatureStats(
        ratio=estimate(0.0, 1.1),
        own=np.where(claims, rng.uniform(0.05, 0.9, count), np.nan),
        excess=estimate(0.5, 4.0),
        elsewhere=estimate(0.0, 0.6),
        fdr=np.where(claims, rng.uniform(0, 0.2, count), np.nan),
        twin=rng.uniform(0, 0.6, count),
        nu_error=rng.uniform(0, 0.3, count),
        nu_reconstruction=rng.uniform(0, 0.6, count),
        found_again=rng.integers(0, OTHER_RUNS + 1, count) / OTHER_RUNS,
        other_runs=np.full(count, OTHER_RUNS, np.int64),
        **{name: measures[name] for name in ("firings", "documents", "density", "template_share", "first_token_share")},
    )
    return judge(claims, stats, recipe.analysis.verdict), stats


def _add_agreement(results: ResultsDraft, claims: np.ndarray, features: int, rng: np.random.Generator) -> None:
    """All cells of the agreement table of every claim with a random other feature."""
    cells = np.arange(BINS * BINS)
    columns = {
        "feature": np.repeat(claims, len(cells)),
        "other": np.repeat(rng.integers(0, features, len(claims)), len(cells)),
        "bin": np.tile(cells // BINS, len(claims)),
        "other_bin": np.tile(cells % BINS, len(claims)),
        "rows": rng.integers(1, 500, len(claims) * len(cells)),
    }
    results.add("agreement", columns)


def _firing_columns(measures: dict[str, np.ndarray], row_metadata: RowMetadata) -> dict[str, np.ndarray | pa.Array]:
    """Columns of the table `feature` that are computed from the firings."""
    names = {f"main_{part.kind}": np.array([*part.names, None], object) for part in row_metadata.partitions}
    return {name: measures[name] for name in MEASURES} | {
        name: pa.array(known[measures[name]], pa.string()) for name, known in names.items()
    }


def _random_columns(codes: FeatureCodes, rng: np.random.Generator) -> dict[str, np.ndarray | pa.Array]:
    """Columns of the table `feature` that are drawn at random."""
    groups = pa.array(["shared", *(source.name for source in SOURCES)])
    return {
        "feature": codes.first + np.arange(codes.features),
        "group_name": groups.take(pa.array(rng.integers(0, len(groups), codes.features))),
        "content_hash": pa.array([f"{codes.first + index:016x}" for index in range(codes.features)]),
        "coherence": rng.uniform(0.01, 0.3, codes.features),
        "found_in": rng.integers(0, OTHER_RUNS + 1, codes.features),
        "looked_in": np.full(codes.features, OTHER_RUNS),
        "score": np.where(codes.counts > 0, rng.uniform(0, 1, codes.features), np.nan),
    }


def _random_decoder_norms(features: int, rng: np.random.Generator) -> DecoderNorms:
    """Seven features in ten write both sources about equally, the rest one source alone."""
    share = np.clip(rng.normal(0.5, 0.1, features), 0.02, 0.98)
    kind = rng.uniform(size=features)
    share = np.where(kind < 0.7, share, np.where(kind < 0.85, 0.0, 1.0))
    norm = rng.uniform(0.7, 1.3, features)
    both = np.stack([norm * (1 - share), norm * share], axis=1)
    return DecoderNorms(both, both)


def _add_neighbours_and_logits(
    results: ResultsDraft, codes: FeatureCodes, features: int, vocabulary: Vocabulary, rng: np.random.Generator
) -> None:
    """Random neighbours and logit effects of the live features of a range."""
    live = codes.first + np.flatnonzero(codes.counts)
    kinds = np.tile(["twin", "similar"], len(live) * NEIGHBOURS)
    count = len(kinds)
    neighbour = {
        "feature": np.repeat(live, 2 * NEIGHBOURS),
        "other": rng.integers(0, features, count),
        "kind": kinds.tolist(),
        "cosine": rng.uniform(0.1, 0.9, count),
        "correlation": rng.uniform(0.1, 0.9, count),
    }
    results.add("neighbour", neighbour)
    ranks = np.concatenate([np.arange(1, LOGITS + 1), -np.arange(1, LOGITS + 1)])
    rank = np.tile(ranks, len(live) * len(SOURCES))
    token = rng.integers(0, len(vocabulary.words), len(rank))
    logit = {
        "feature": np.repeat(live, len(SOURCES) * len(ranks)),
        "source": np.tile(np.repeat([source.source for source in SOURCES], len(ranks)), len(live)),
        "rank": rank,
        "token": vocabulary.array.take(pa.array(token)),
        "effect": (3.0 / rank).astype(np.float32),
    }
    results.add("logit", logit)
