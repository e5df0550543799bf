"""Measures all baselines of a run, as part of the evaluate stage, which has the models loaded."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.analysis.behaviour.span_table import SpanTable
from trainer.analysis.claims.spaces import shared_spaces
from trainer.analysis.per_feature.logit_effects import Unembedding
from trainer.baselines.divergence import SpanScores, compare_models, divergence_rows
from trainer.baselines.lens import difference_rows, lens_rows, mean_difference
from trainer.baselines.noised import NoisedCopy, has_room, matching_amount
from trainer.baselines.passages import passage_rows
from trainer.baselines.span_rows import span_table
from trainer.baselines.spans import AlignedSequence, aligned_sequences
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.models.source import Source
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.recipe import Recipe
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore

NEEDED = {"sequence", "document", "corpus", "held_out", "text", "is_chat", "template_spans", "tokens", "token_ids"}
"""Columns of the sequences that the baselines read."""

MATCHED = 8
"""Sequences on which the noise of a copy is matched."""

Tables = dict[str, list[dict[str, Any]]]
"""Rows by table."""


def obstacle(recipe: Recipe, store: ActivationStore, models: Collection[str]) -> str | None:
    """Why no baseline can be measured, or None; `models` are the sources whose models can be loaded."""
    if not (recipe.baselines.lens or recipe.baselines.divergence):
        return "the recipe leaves them out"
    if not models:
        return "the recipe has no sources"
    if missing := sorted(store.widths.keys() - set(models)):
        return f"the recipe has no model for {', '.join(missing)}"
    if missing := sorted(NEEDED - store.sequence_columns()):
        return f"the activation store does not say {', '.join(missing)} of its sequences"
    return None


def unmeasured(recipe: Recipe, reason: str) -> Tables:
    """Rows of the results when there is an `obstacle`; `reason` is what it says."""
    wanted = {"lens": recipe.baselines.lens, "divergence": recipe.baselines.divergence}
    states = [_state(name, "impossible", reason) if on else _off(name) for name, on in wanted.items()]
    return {"baseline": [*states, _diff_sae(recipe, one_space=True)]}


def measure_or_explain(
    recipe: Recipe,
    store: ActivationStore,
    crosscoder: Crosscoder,
    sources: Sequence[Source],
    progress: Progress,
    *,
    reason: str | None,
) -> tuple[Tables, list[SpanTable]]:
    """Rows of tables and compared spans; with a `reason`, an obstacle, rows that say so."""
    if reason is None:
        return measure_baselines(recipe, store, crosscoder, sources, progress)
    progress.notify(f"evaluate: the models are not compared directly, because {reason}")
    return unmeasured(recipe, reason), []


def measure_baselines(
    recipe: Recipe, store: ActivationStore, crosscoder: Crosscoder, sources: Sequence[Source], progress: Progress
) -> tuple[Tables, list[SpanTable]]:
    """Measure every baseline that the recipe asks for and that is defined for these sources.

    Returns rows of tables, and the spans of text that were compared, by pair of models.

    `sources` are whole models of all sources of the store, and there is no `obstacle`. The crosscoder only tells which
    sources share a space. Raises StoreError when rows and texts do not fit.
    """
    order = {source.name: index for index, source in enumerate(store.sources)}
    measurement = _Measurement(
        recipe, store, sorted(sources, key=lambda source: order[source.name]), progress, defaultdict(list), []
    )
    pairs = [(order[base], order[source]) for base, source in pairs_of_spaces(recipe, crosscoder)]
    measurement.tables["baseline"] += [
        measurement.lens(pairs),
        measurement.divergence(),
        _diff_sae(recipe, one_space=bool(pairs)),
    ]
    return dict(measurement.tables), measurement.spans


@dataclass(frozen=True)
class _Measurement:
    """Fills the tables of the baselines."""

    recipe: Recipe
    store: ActivationStore
    sources: list[Source]
    """In the order of the store."""
    progress: Progress
    tables: Tables
    spans: list[SpanTable]

    def lens(self, pairs: Sequence[tuple[int, int]]) -> dict[str, str]:
        """Fills the tables of the activation difference lens and returns its state."""
        if not self.recipe.baselines.lens:
            return _off("lens")
        if not pairs:
            names = ", ".join(source.name for source in self.sources)
            reason = f"no two of {names} share a space, and a difference of activations means nothing across spaces"
            return _state("lens", "undefined", reason)
        with self.progress.task("baselines: activation differences", total=len(pairs), unit="pairs") as task:
            for pair in pairs:
                difference = mean_difference(self.store, *(self.sources[index].name for index in pair))
                self.tables["baseline_difference"] += difference_rows(difference, pair)
                for reader in pair:
                    if self.sources[reader].logit_obstacle is not None:
                        continue
                    unembedding = Unembedding.from_source(self.sources[reader])
                    self.tables["baseline_lens"] += lens_rows(
                        difference, pair, reader, unembedding, self.recipe.analysis.logits
                    )
                task.advance(1)
        if not self.tables["baseline_difference"]:
            return _state("lens", "impossible", "too few texts have rows at their first tokens")
        return _state("lens", "measured")

    def divergence(self) -> dict[str, str]:
        """Fills the tables of predictions on the same text and returns their state."""
        if not self.recipe.baselines.divergence:
            return _off("divergence")
        pairs = pairs_of_models([source.recipe for source in self.sources])
        if not pairs:
            return _state("divergence", "undefined", "all sources are one model")
        specials = [source.tokenizer.all_special_ids for source in self.sources]
        sequences = aligned_sequences(self.store, specials, self.recipe.baselines.sequences)
        for base, source in pairs:
            scores, *noised = self._scores(base, source, sequences)
            if scores:
                # Rows about the base alone are the same in every pair.
                rows = self.tables["baseline_divergence"]
                rows += [row for row in divergence_rows(scores, (base, source)) if row not in rows]
                self.tables["baseline_passage"] += passage_rows(scores, (base, source))
                tokenizers = self.sources[base].tokenizer, self.sources[source].tokenizer
                self.spans.append(span_table(scores, noised, (base, source), tokenizers))
        if not self.tables["baseline_divergence"]:
            return _state("divergence", "impossible", "no text could be aligned")
        return _state("divergence", "measured")

    def _scores(self, base: int, source: int, sequences: Sequence[AlignedSequence]) -> list[list[SpanScores]]:
        """Scores of a pair of models, then of the base and two noised copies of it, if there is room for them."""
        one, other = self.sources[base], self.sources[source]
        scored = [sequence for sequence in sequences if sequence.scored.any()]
        if not scored or not has_room(one, copies=2):
            if scored:
                self.progress.notify(f"baselines: no memory for noised copies of {one.name}; no themes are looked for")
            return compare_models(one, [other], (base, [source]), sequences, self.progress)
        some = [scored[at] for at in range(0, len(scored), -(-len(scored) // MATCHED))]
        copies, seed = [NoisedCopy(one), NoisedCopy(one)], 2 * self.recipe.training.seed

        def moved(model: Source, index: int) -> float:
            return mean_apart(compare_models(one, [model], (base, [index]), some, self.progress)[0])

        wanted, noised = moved(other, source), []
        if wanted > 0:
            amount = matching_amount(lambda amount: moved(copies[0].draw(amount, seed), base), wanted)
            noised = [copy.draw(amount, seed + number) for number, copy in enumerate(copies)]
        return compare_models(one, [other, *noised], (base, [source, *[base] * len(noised)]), sequences, self.progress)


def mean_apart(scores: Sequence[SpanScores]) -> float:
    """How far two models are apart on the average usable span, nats; 0 without any."""
    apart = np.concatenate([np.zeros(0), *(one.apart[one.usable] for one in scores)])
    return float(apart.mean()) if len(apart) else 0.0


def pairs_of_spaces(recipe: Recipe, crosscoder: Crosscoder) -> list[tuple[str, str]]:
    """Names (base, source) of sources that share a space: the first of every space, paired with each other one."""
    subtracted = [(other, one) for one, other in crosscoder.differences.values()]
    pairs = [(space[0], other) for space in shared_spaces(crosscoder, recipe.analysis) for other in space[1:]]
    return subtracted + pairs


def pairs_of_models(sources: Sequence[SourceRecipe]) -> list[tuple[int, int]]:
    """Indexes of sources whose predictions are compared: the first source, with the first of every other model."""
    models = [(source.model, source.revision, source.adapter, source.quantization, source.chat) for source in sources]
    return [(0, index) for index, model in enumerate(models) if model != models[0] and model not in models[:index]]


def _diff_sae(recipe: Recipe, *, one_space: bool) -> dict[str, str]:
    beside = recipe.diff_sae_variant()
    if beside is not None:
        return _state("diff_sae", "measured", f"{beside.name}-{beside.fingerprint()}")
    if not one_space:
        return _state("diff_sae", "undefined", "no two sources share a space")
    return _off("diff_sae")


def _off(baseline: str) -> dict[str, str]:
    return _state(baseline, "off", "the recipe leaves it out")


def _state(baseline: str, state: str, reason: str = "") -> dict[str, str]:
    return {"baseline": baseline, "state": state, "reason": reason}
