"""Stage: encode every row once, ask all questions of the codes, publish the answers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.analysis.claims.claims import ClaimInputs, JudgedClaims, Measures, Ownership, judge_claims, known_false
from trainer.analysis.claims.latent_scaling import Scaling
from trainer.analysis.claims.ranking import Evidence, excess, scores
from trainer.analysis.claims.readout import Readout, readout, readout_ratio
from trainer.analysis.claims.spaces import Spaces, spaces
from trainer.analysis.claims.stability import other_runs, stability
from trainer.analysis.encode_pass import Encoded, encode_rows
from trainer.analysis.pairs.agreement import agreement
from trainer.analysis.pairs.agreement import columns as columns_of
from trainer.analysis.pairs.coactivation import Coactivation
from trainer.analysis.pairs.twins import Cosines, neighbours
from trainer.analysis.per_feature.coherence import POLYSEMOUS, best_of_holders, coherence
from trainer.analysis.per_feature.decoder_norms import (
    DecoderNorms,
    content_hashes,
    cosines,
    decoder_norms,
)
from trainer.analysis.per_feature.firings import RowMetadata, corpus_shares, share_of_rows
from trainer.analysis.per_feature.logit_effects import Unembedding, logit_effects
from trainer.analysis.per_feature.logit_effects import columns as logit_columns
from trainer.analysis.per_feature.stage import ask, side_by_side
from trainer.analysis.per_feature.windows import Windows, sequence_columns
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.rows.moments import Moments
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
    readouts: Mapping[str, Unembedding] | None = None,
) -> Path:
    """Measure every feature over all rows of the store and publish the results of the run.

    Contexts need a store with documents, logit effects the sources' unembeddings in `readouts`; without them those
    tables stay empty. Training metrics and the evaluation are taken from the run folder, coverage from the store,
    where they are. Memory does not grow with rows but for some
    thirty bytes each. Returns the published file.
    Raises StoreError for a store that does not fit together, CrosscoderError when it is not the crosscoder's.
    """
    check_sources(crosscoder, store.widths, store.path)
    shared = spaces(crosscoder, recipe.analysis)
    with CodeSpool(folder.path, crosscoder.features) as codes, publishing(folder) as draft:
        sources = _sources(store, crosscoder, shared)
        analysis = _Analysis(recipe, crosscoder, [source.name for source in sources], codes, draft, progress)
        encoded = encode_rows(store, crosscoder, codes, shared, progress=progress)
        draft.add_run(recipe, folder.run)
        draft.add_rows("source", sources)
        draft.add_rows("evaluation", read_evaluation(folder.evaluation, crosscoder.sources))
        draft.add_rows("coverage", read_coverage(store.manifest.statistics))
        for table, records in read_baselines(folder.baselines).items():
            draft.add_records(table, records)
        draft.add_rows("training_metric", read_metrics(folder.metrics))
        measures = analysis.one_by_one(encoded.metadata)
        analysis.together(measures, encoded, store, folder)
        for table, columns in read_calibration(folder.calibration, [source.name for source in sources]).items():
            draft.add(table, columns)
        if readouts:
            analysis.logits(readouts)
    published = folder.results()
    assert published is not None, "publishing leaves current.json behind"
    return published


@dataclass(frozen=True)
class _Analysis:
    """One analysis under way."""

    recipe: Recipe
    crosscoder: Crosscoder
    sources: list[str]
    """Names in the order of the table `source`."""
    codes: CodeSpool
    draft: ResultsDraft
    progress: Progress

    def one_by_one(self, metadata: RowMetadata) -> dict[str, np.ndarray]:
        """Everything that is asked of a feature alone; fills `histogram`, `firing` and `sequence`."""
        parts: list[dict[str, np.ndarray]] = []
        sequences = np.zeros(0, np.int64)
        places, texts, rows = metadata.places, metadata.texts, self.recipe.analysis.contexts.window
        windows = Windows(places, texts, rows) if places is not None and texts is not None else None
        question = partial(ask, metadata=metadata, windows=windows, recipe=self.recipe.analysis.contexts)
        with self.progress.task("Reading features", total=self.codes.features, unit="features"):
            for answers in side_by_side(question, self.codes.pieces()):
                for table, columns in answers.tables:
                    self.draft.add(table, columns)
                sequences = np.union1d(sequences, answers.sequences)
                parts.append(answers.measures)
                self.progress.advance(answers.features)
        if windows is not None:
            self.draft.add("sequence", sequence_columns(windows.texts, sequences))
            self.draft.add("text_part", metadata.text_parts())
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def together(
        self, measures: dict[str, np.ndarray], encoded: Encoded, store: ActivationStore, folder: RunFolder
    ) -> None:
        """Everything that compares features or sources; fills all other tables of features."""
        norms, targets, metadata = decoder_norms(self.crosscoder), self.crosscoder.targets, encoded.metadata
        ownership = Ownership.of(self.crosscoder, norms, self.recipe.analysis)
        owner, holds = ownership.owner, ownership.holds
        read = self.readouts(encoded.moments)
        self._in_sources(norms, np.stack([one.score for one in read.values()], axis=1), encoded.scaling)
        with self.progress.task("Comparing features", total=None, unit="features"):
            count = self.recipe.analysis.neighbours
            alike = neighbours(Coactivation(self.codes), Cosines(self.crosscoder), owner, count)
            self.draft.add("neighbour", alike.columns())
            pairs = alike.pairs_of(ownership.claims)
            self.draft.add("agreement", columns_of(pairs, agreement(self.codes, pairs, measures["max_activation"])))
        known = {name: measures[name] for name in MEASURES}
        inputs = ClaimInputs(
            self.crosscoder, ownership, encoded.moments, read, Measures(**known, twin=alike.strongest_twin)
        )
        again = stability(store, self.crosscoder, ownership, other_runs(folder), self.recipe.analysis)
        inputs = replace(inputs, scaling=encoded.scaling, found_again=again.share, other_runs=again.looked_in)
        judged = self._judge(inputs, store, folder)
        united = np.stack([coherence(encoded.moments, name) for name in targets], axis=1)
        one = best_of_holders(united, holds)
        stored = {name: measures[name] for name in MEASURED} | {
            "feature": np.arange(self.codes.features),
            "group_name": [group.name for group in self.crosscoder.groups for _ in range(group.features)],
            "content_hash": content_hashes(self.crosscoder),
            "owner": owner,
            "main_corpus": _named(metadata, "corpus", measures["main_corpus"]),
            "main_language": _named(metadata, "language", measures["main_language"]),
            "coherence": one,
            "polysemous": pa.array(one < POLYSEMOUS, mask=np.isnan(one)),
            "readout_ratio": readout_ratio(np.stack([read[name].score for name in targets], axis=1), holds),
            "verdict": judged.judgement.verdict,
            "kind": pa.array(judged.judgement.kind, pa.string()),
            "found_in": np.where(again.looked_in > 0, again.found_in, np.nan),
            "looked_in": again.looked_in,
            "q_value": judged.q_value,
            "score": scores(owner, judged.judgement.verdict, _evidence(measures, norms, inputs, judged, metadata)),
        }
        self.draft.add("feature", stored)

    def _judge(self, inputs: ClaimInputs, store: ActivationStore, folder: RunFolder) -> JudgedClaims:
        """Judge all claims; fills `evidence`."""
        known = known_false(folder.calibration, inputs.ownership)
        judged = judge_claims(inputs, store, self.recipe.analysis, known=known, progress=self.progress)
        self.draft.add("evidence", judged.judgement.columns())
        return judged

    def readouts(self, moments: Moments) -> dict[str, Readout]:
        """Readouts of all features from every source of the crosscoder."""
        found = {}
        with self.progress.task("Reading out", total=len(self.crosscoder.sources), unit="sources"):
            for source in self.crosscoder.sources:
                found[source] = readout(moments, source)
                self.progress.advance(1)
        return found

    def _in_sources(self, norms: DecoderNorms, score: np.ndarray, scaling: Scaling) -> None:
        """Fill `feature_source`."""
        columns = norms.columns([self.sources.index(name) for name in self.crosscoder.sources])
        more = {"readout": score.ravel(), "cosine": cosines(self.crosscoder).ravel()}
        self.draft.add("feature_source", columns | scaling.columns() | more)

    def logits(self, readouts: Mapping[str, Unembedding]) -> None:
        """What features that fire do to every source's logits; fills `logit`."""
        tables = []
        # A difference lies in the space of both its sources; it is read through the one that is subtracted from.
        models = {name: self.crosscoder.differences.get(name, (name,))[0] for name in self.crosscoder.sources}
        readable = {name: readouts[model] for name, model in models.items() if model in readouts}
        with self.progress.task("Reading directions", total=len(readable), unit="sources"):
            for source, unembedding in readable.items():
                direction = self.crosscoder.decoder(source)
                writes = (direction != 0).any(dim=1).cpu().numpy()
                some = np.flatnonzero(writes & (self.codes.counts > 0))
                effects = logit_effects(direction[some], unembedding, self.recipe.analysis.logits)
                tables.append(logit_columns(some, self.sources.index(source), effects, unembedding.text))
                self.progress.advance(1)
        if tables:
            whole = pa.concat_tables(tables)
            order = np.argsort(whole["feature"].to_numpy(), kind="stable")
            self.draft.add("logit", {name: whole[name].take(order) for name in whole.column_names})


MEASURED = (
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
"""Measures that go into the table `feature` as they are."""
MEASURES = ("firings", "documents", "density", "template_share", "first_token_share")
"""Measures that verdicts rest on."""


def _evidence(
    measures: Mapping[str, np.ndarray],
    norms: DecoderNorms,
    inputs: ClaimInputs,
    judged: JudgedClaims,
    metadata: RowMetadata,
) -> Evidence:
    main, parts = measures["main_corpus"], corpus_shares(metadata)
    usual = np.where(main >= 0, parts[main], np.nan) if len(parts) else np.full(len(main), np.nan)
    return Evidence(
        firings=measures["firings"],
        documents=measures["documents"],
        density=measures["density"],
        on_templates=excess(measures["template_share"], share_of_rows(metadata.template)),
        on_openings=excess(measures["first_token_share"], share_of_rows(metadata.opening)),
        strongest_twin=inputs.measures.twin,
        energy=measures["squares"] * (norms.decoder**2).sum(axis=1),
        focus=excess(measures["main_corpus_share"], usual),
        # A claim of which nothing can be told has nothing to show for itself.
        strength=np.where(inputs.ownership.claims, np.nan_to_num(judged.contrast.strength), np.nan),
    )


def _named(metadata: RowMetadata, kind: str, index: np.ndarray) -> pa.StringArray:
    """Names of parts by index, null for -1."""
    names = next((part.names for part in metadata.parts if part.kind == kind), ())
    return pa.array(np.array([*names, None], object)[index], pa.string())


def _sources(store: ActivationStore, crosscoder: Crosscoder, shared: Spaces) -> list[SourceRow]:
    """The store's sources, whose tokens contexts have, and then those that the crosscoder made of them."""
    known = {source.name: source for source in store.sources}
    made = {
        name: StoredSource(name, crosscoder.widths[name], model=f"{one} minus {other}", hookpoint=known[one].hookpoint)
        for name, (one, other) in crosscoder.differences.items()
    }
    space = {name: number for number, names in enumerate(shared) for name in names}
    everything = enumerate((known | made).values())
    return [_source(index, source, crosscoder, space.get(source.name)) for index, source in everything]


def _source(index: int, source: StoredSource, crosscoder: Crosscoder, space: int | None) -> SourceRow:
    # Stores that Crossdiff harvested say "resid_post.15"; others may say anything.
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
