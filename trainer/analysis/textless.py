"""Judges all claims on rows without text, for benchmarks and calibration with known ground truth."""

from typing import NamedTuple

from trainer.analysis.claims.claims import ClaimInputs, FeatureMeasures, JudgedClaims, Ownership, judge_claims
from trainer.analysis.claims.spaces import shared_spaces
from trainer.analysis.claims.stability import stability
from trainer.analysis.encode_pass import encode_rows
from trainer.analysis.pairs.coactivation import Coactivation
from trainer.analysis.pairs.twins import Cosines, neighbours
from trainer.analysis.per_feature.decoder_norms import decoder_norms
from trainer.analysis.rows.codes import CodeSpool
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.recipe.measuring import AnalysisRecipe
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore


class TextlessVerdicts(NamedTuple):
    """A crosscoder's claims and the verdicts on them."""

    ownership: Ownership
    judged_claims: JudgedClaims


def judge_without_text(
    store: ActivationStore, crosscoder: Crosscoder, codes: CodeSpool, recipe: AnalysisRecipe, *, progress: Progress
) -> TextlessVerdicts:
    """Encode every row into `codes` and judge claims by all tests that need no text and no other run.

    Raises StoreError for an inconsistent store, RecipeError for an impossible `same_space`.
    """
    encoded = encode_rows(store, crosscoder, codes, shared_spaces(crosscoder, recipe), progress=progress)
    ownership = Ownership.from_norms(crosscoder, decoder_norms(crosscoder), recipe)
    twins = neighbours(Coactivation(codes), Cosines(crosscoder), ownership.owner, 0)
    found = stability(store, crosscoder, ownership, [], recipe)
    inputs = ClaimInputs(
        crosscoder,
        ownership,
        encoded.moments,
        codes,
        FeatureMeasures.without_text(codes.counts, codes.rows, twins.strongest_twin),
        encoded.scaling,
        found.share,
        found.looked_in,
    )
    return TextlessVerdicts(ownership, judge_claims(inputs, store, recipe, progress=progress))
