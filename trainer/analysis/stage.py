"""The `analyse` stage: encodes every row once, measures features, judges claims, publishes results."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.analysis.behaviour.span_table import read_spans
from trainer.analysis.behaviour.stage import compare_behaviour
from trainer.analysis.claims.claims import (
    ClaimInputs,
    FeatureMeasures,
    JudgedClaims,
    Ownership,
    judge_claims,
    read_null,
)
from trainer.analysis.claims.latent_scaling import ScalingFactors
from trainer.analysis.claims.margin import margins
from trainer.analysis.claims.other_layers import LayerReader
from trainer.analysis.claims.predictability import predictability, sample_partitions
from trainer.analysis.claims.ranking import RankingInputs, excess, scores
from trainer.analysis.claims.readout import Readout, readout
from trainer.analysis.claims.spaces import Spaces, shared_spaces
from trainer.analysis.claims.stability import other_runs, stability
from trainer.analysis.encode_pass import EncodePassResult, encode_rows
from trainer.analysis.findings.reported import Reported
from trainer.analysis.findings.stage import findings
from trainer.analysis.pairs.agreement import agreement, agreement_columns
from trainer.analysis.pairs.coactivation import Coactivation
from trainer.analysis.pairs.twins import Cosines, neighbours
from trainer.analysis.per_feature.coherence import POLYSEMOUS, best_of_holders, coherence
from trainer.analysis.per_feature.contexts import Windows, sequence_columns
from trainer.analysis.per_feature.decoder_norms import (
    DecoderNorms,
    content_hashes,
    cosines,
    decoder_norms,
)
from trainer.analysis.per_feature.firings import RowMetadata, corpus_shares, share_of_rows
from trainer.analysis.per_feature.logit_effects import Unembedding, logit_columns, logit_effects
from trainer.analysis.per_feature.stage import map_ranges, measure_range
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.rows.moments import Moments
from trainer.analysis.rows.sample import RowSample, sample_rows
from trainer.crosscoder.crosscoder import Crosscoder, check_sources
from trainer.recipe.recipe import Recipe
from trainer.results.draft import (
    ResultsDraft,
    SourceRow,
    publishing,
    read_baselines,
    read_calibration,
    read_coverage,
    read_evaluation,
    read_metrics,
)
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore, StoredSource


def analyse(
    recipe: Recipe,
    store: ActivationStore,
    crosscoder: Crosscoder,
    *,
    folder: RunFolder,
    progress: Progress,
    unembeddings: Mapping[str, Unembedding] | None = None,
    layers: LayerReader | None = None,
) -> Path:
    """Measure every feature over all rows of the store and publish the results of the run.

    Contexts need a store with texts, logit effects the sources' `unembeddings`, other layers their models (`layers`);
    without them those tables stay empty.
    Training metrics, evaluation, baselines and calibration are read from the run folder, coverage from the store, as
    far as they exist. Memory grows by about thirty bytes per row.
    Returns the path of the published file. Raises StoreError for an inconsistent store, CrosscoderError if the store's
    sources are not the crosscoder's, RecipeError for an impossible `same_space`.
    """
    check_sources(crosscoder, store.widths, store.path)
    common_spaces = shared_spaces(crosscoder, recipe.analysis)
    with CodeSpool(folder.path, crosscoder.features) as codes, publishing(folder) as draft:
        sources = _sources(store, crosscoder, common_spaces)
        analysis = _Analysis(recipe, crosscoder, [source.name for source in sources], codes, draft, progress)
        encoded = encode_rows(store, crosscoder, codes, common_spaces, progress=progress)
        draft.add_run(recipe, folder.run_id)
        draft.add_rows("source", sources)
        draft.add_rows("evaluation", read_evaluation(folder.evaluation, crosscoder.sources))
        draft.add_rows("coverage", read_coverage(store.manifest.statistics))
        for table, records in read_baselines(folder.baselines).items():
            draft.add_records(table, records)
        draft.add_rows("training_metric", read_metrics(folder.metrics))
        measures = analysis.measure_features(encoded.metadata)
        judged, owner = analysis.compare_features(measures, encoded, store, folder, layers)
        analysis.add_findings(judged, owner, encoded.metadata, store, folder)
        for table, records in read_calibration(folder.calibration, [source.name for source in sources]).items():
            draft.add_records(table, records)
        if unembeddings:
            analysis.add_logit_effects(unembeddings)
    atomic_write = folder.results()
    assert atomic_write is not None, "publishing writes current.json"
    return atomic_write


@dataclass(frozen=True)
class _Analysis:
    """State of a running analysis: what is analysed and where results go."""

    recipe: Recipe
    crosscoder: Crosscoder
    sources: list[str]
    """Names of the sources in the order of the table `source`."""
    codes: CodeSpool
    draft: ResultsDraft
    progress: Progress

    def measure_features(self, metadata: RowMetadata) -> dict[str, np.ndarray]:
        """Per-feature measures [F]; fills the tables of firings, contexts, corpus parts and languages."""
        parts: list[dict[str, np.ndarray]] = []
        sequences = np.zeros(0, np.int64)
        row_order, texts, rows = metadata.row_order, metadata.texts, self.recipe.analysis.contexts.window
        windows = Windows(row_order, texts, rows) if row_order is not None and texts is not None else None
        compute = partial(measure_range, metadata=metadata, windows=windows, recipe=self.recipe.analysis.contexts)
        with self.progress.task("Measuring features", total=self.codes.features, unit="features"):
            for results in map_ranges(compute, self.codes.feature_ranges()):
                for table, columns in results.tables:
                    self.draft.add(table, columns)
                sequences = np.union1d(sequences, results.sequences)
                parts.append(results.measures)
                self.progress.advance(results.features)
        if windows is not None:
            for first in range(0, len(sequences), SEQUENCES):
                self.draft.add("sequence", sequence_columns(windows.texts, sequences[first : first + SEQUENCES]))
            self.draft.add("text_part", metadata.text_part_columns())
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def compare_features(
        self,
        measures: dict[str, np.ndarray],
        encoded: EncodePassResult,
        store: ActivationStore,
        folder: RunFolder,
        layers: LayerReader | None,
    ) -> tuple[JudgedClaims, list[str]]:
        """Compare features and sources and judge claims; fills the remaining tables of features.

        Returns the claims, and the owner of every feature.
        """
        norms, targets, metadata = decoder_norms(self.crosscoder), self.crosscoder.targets, encoded.metadata
        ownership = Ownership.from_norms(self.crosscoder, norms, self.recipe.analysis)
        owner, holds = ownership.owner, ownership.holds
        readouts = self.readouts(encoded.moments)
        scores_by_source = np.stack([one.score for one in readouts.values()], axis=1)
        self._add_feature_sources(norms, scores_by_source, encoded.scaling)
        twin = self._add_neighbours(ownership, measures["max_activation"])
        verdict_measures = FeatureMeasures(**{name: measures[name] for name in VERDICT_MEASURES}, twin=twin)
        inputs = ClaimInputs(self.crosscoder, ownership, encoded.moments, self.codes, verdict_measures)
        found = stability(store, self.crosscoder, ownership, other_runs(folder), self.recipe.analysis)
        inputs = replace(inputs, scaling=encoded.scaling, found_again=found.share, other_runs=found.looked_in)
        sample = sample_rows(store, self.crosscoder)
        self._add_predictability(sample, encoded)
        judged = self._judge(inputs, sample, store, folder, layers)
        verdicts = ownership.verdicts(judged.judgement.verdict)
        coherence_by_source = np.stack([coherence(encoded.moments, name) for name in targets], axis=1)
        best_coherence = best_of_holders(coherence_by_source, holds)
        stored = {name: measures[name] for name in FEATURE_MEASURES} | {
            "feature": np.arange(self.codes.features),
            "group_name": [group.name for group in self.crosscoder.groups for _ in range(group.features)],
            "content_hash": content_hashes(self.crosscoder),
            "owner": owner,
            "main_corpus": _main_part_names(metadata, "corpus", measures["main_corpus"]),
            "main_language": _main_part_names(metadata, "language", measures["main_language"]),
            "coherence": best_coherence,
            "polysemous": pa.array(best_coherence < POLYSEMOUS, mask=np.isnan(best_coherence)),
            **judged.columns(),
            "verdict": verdicts,
            "kind": pa.array(judged.judgement.kind, pa.string()),
            "found_in": np.where(found.looked_in > 0, found.found_in, np.nan),
            "looked_in": found.looked_in,
            "score": scores(
                owner,
                verdicts,
                _ranking_inputs(measures, norms, inputs, metadata, margins(judged.stats, self.recipe.analysis.verdict)),
            ),
        }
        self.draft.add("feature", stored)
        return judged, owner

    def _add_neighbours(self, ownership: Ownership, max_activation: np.ndarray) -> np.ndarray:
        """Fill `neighbour` and `agreement`; returns the largest correlation of each with one of another owner [F]."""
        with self.progress.task("Comparing features", total=None, unit="features"):
            count = self.recipe.analysis.neighbours
            related = neighbours(Coactivation(self.codes), Cosines(self.crosscoder), ownership.owner, count)
            self.draft.add("neighbour", related.columns())
            pairs = related.strongest_twins(ownership.claims)
            self.draft.add("agreement", agreement_columns(pairs, agreement(self.codes, pairs, max_activation)))
        return related.strongest_twin

    def add_findings(
        self, judged: JudgedClaims, owner: list[str], metadata: RowMetadata, store: ActivationStore, folder: RunFolder
    ) -> None:
        """Fill the tables of behaviour and of findings."""
        recipe = self.recipe.analysis.verdict
        with self.progress.task("Looking where the models behave differently", total=None, unit="pairs"):
            behaviour = compare_behaviour(
                read_spans(folder.spans),
                metadata,
                self.codes,
                store.document_groups(),
                recipe.divergence_ratio,
                recurs=np.nan_to_num(judged.stats.found_again) >= max(recipe.found_again, LEAST_AGAIN),
            )
            columns = [pair.features.columns() for pair in behaviour]
            if columns:
                joined = {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
                order = np.argsort(joined["feature"], kind="stable")
                self.draft.add("feature_divergence", {name: values[order] for name, values in joined.items()})
            for pair in behaviour:
                self.draft.add_records("behaviour_null", pair.null_rows(recipe.divergence_ratio))
            found = findings(Reported(judged, owner, behaviour, metadata, self.codes, self.sources, recipe))
            for table, records in found.tables().items():
                self.draft.add_records(table, records)

    def _add_predictability(self, sample: RowSample, encoded: EncodePassResult) -> None:
        """Fill `predictability`."""
        with self.progress.task("Predicting sources from each other", total=None, unit="sources"):
            partitions = sample_partitions(encoded.metadata, sample)
            told = predictability(sample, encoded.moments.row_moments, self.crosscoder.sources, partitions)
            self.draft.add_records(
                "predictability", [row | {"source": self.sources.index(row["source"])} for row in told]
            )

    def _judge(
        self,
        inputs: ClaimInputs,
        sample: RowSample,
        store: ActivationStore,
        folder: RunFolder,
        layers: LayerReader | None,
    ) -> JudgedClaims:
        """Judge all claims; fills `evidence`, `probe` and `other_layer`."""
        null = read_null(folder.calibration)
        judged = judge_claims(
            inputs, store, self.recipe.analysis, null=null, sample=sample, layers=layers, progress=self.progress
        )
        self.draft.add("other_layer", judged.other_layers.columns(judged.claims, self.sources))
        self.draft.add("evidence", judged.judgement.columns())
        self.draft.add("probe", judged.probe_columns([self.sources.index(name) for name in self.crosscoder.sources]))
        return judged

    def readouts(self, moments: Moments) -> dict[str, Readout]:
        """Readouts of all features from every source of the crosscoder."""
        readouts = {}
        with self.progress.task("Fitting readouts", total=len(self.crosscoder.sources), unit="sources"):
            for source in self.crosscoder.sources:
                readouts[source] = readout(moments, source)
                self.progress.advance(1)
        return readouts

    def _add_feature_sources(self, norms: DecoderNorms, score: np.ndarray, scaling: ScalingFactors) -> None:
        """Fill `feature_source`."""
        columns = norms.columns([self.sources.index(name) for name in self.crosscoder.sources])
        similarity = {"readout": score.ravel(), "cosine": cosines(self.crosscoder).ravel()}
        self.draft.add("feature_source", columns | scaling.columns() | similarity)

    def add_logit_effects(self, unembeddings: Mapping[str, Unembedding]) -> None:
        """Logit effects of features that fire, on every source with an unembedding; fills `logit`."""
        tables = []
        # A difference of sources lives in the space of both; the unembedding of the minuend is used.
        models = {name: self.crosscoder.differences.get(name, (name,))[0] for name in self.crosscoder.sources}
        available = {name: unembeddings[model] for name, model in models.items() if model in unembeddings}
        with self.progress.task("Computing logit effects", total=len(available), unit="sources"):
            for source, unembedding in available.items():
                direction = self.crosscoder.decoder(source)
                writes = (direction != 0).any(dim=1).cpu().numpy()
                features = np.flatnonzero(writes & (self.codes.counts > 0))
                effects = logit_effects(direction[features], unembedding, self.recipe.analysis.logits)
                tables.append(logit_columns(features, self.sources.index(source), effects, unembedding.text))
                self.progress.advance(1)
        if tables:
            whole = pa.concat_tables(tables)
            order = np.argsort(whole["feature"].to_numpy(), kind="stable")
            self.draft.add("logit", {name: whole[name].take(order) for name in whole.column_names})


LEAST_AGAIN = 0.01
"""Share of the other trainings that must have found a feature where the recipe asks for none."""
SEQUENCES = 1024
"""Sequences added to the results at a time."""
FEATURE_MEASURES = (
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
"""Measures that are columns of the table `feature`."""
VERDICT_MEASURES = ("firings", "documents", "density", "template_share", "first_token_share")
"""Measures that verdicts use."""


def _ranking_inputs(
    measures: Mapping[str, np.ndarray],
    norms: DecoderNorms,
    inputs: ClaimInputs,
    metadata: RowMetadata,
    margin: np.ndarray,
) -> RankingInputs:
    main, shares = measures["main_corpus"], corpus_shares(metadata)
    usual = np.where(main >= 0, shares[main], np.nan) if len(shares) else np.full(len(main), np.nan)
    return RankingInputs(
        firings=measures["firings"],
        documents=measures["documents"],
        density=measures["density"],
        on_templates=excess(measures["template_share"], share_of_rows(metadata.template)),
        on_openings=excess(measures["first_token_share"], share_of_rows(metadata.opening)),
        strongest_twin=inputs.measures.twin,
        energy=measures["squares"] * (norms.decoder**2).sum(axis=1),
        focus=excess(measures["main_corpus_share"], usual),
        margin=margin,
    )


def _main_part_names(metadata: RowMetadata, kind: str, index: np.ndarray) -> pa.StringArray:
    """Names of corpus parts or languages by index, null for -1."""
    names = next((one.names for one in metadata.partitions if one.kind == kind), ())
    return pa.array(np.array([*names, None], object)[index], pa.string())


def _sources(store: ActivationStore, crosscoder: Crosscoder, spaces: Spaces) -> list[SourceRow]:
    """Rows of `source`: the store's sources, by which token columns are indexed, then the crosscoder's differences."""
    known = {source.name: source for source in store.sources}
    differences = {
        name: StoredSource(name, crosscoder.widths[name], model=f"{one} minus {other}", hookpoint=known[one].hookpoint)
        for name, (one, other) in crosscoder.differences.items()
    }
    space = {name: number for number, names in enumerate(spaces) for name in names}
    numbered = enumerate((known | differences).values())
    return [_source(index, source, crosscoder, space.get(source.name)) for index, source in numbered]


def _source(index: int, source: StoredSource, crosscoder: Crosscoder, space: int | None) -> SourceRow:
    # Stores harvested by Crossdiff name hookpoints like "resid_post.15"; imported stores are free to differ.
    hookpoint, _, layer = source.hookpoint.rpartition(".")
    with_layer = layer.isdecimal()
    used = source.name in crosscoder.normaliser
    return SourceRow(
        source=index,
        name=source.name,
        model=source.model,
        revision=source.revision,
        hookpoint=hookpoint if with_layer else source.hookpoint,
        layer=int(layer) if with_layer else None,
        width=source.width,
        scale=crosscoder.normaliser[source.name].scale if used else 1.0,
        space=space,
    )
