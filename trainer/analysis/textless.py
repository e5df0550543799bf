"""Blind: the analysis' own test of all claims, on rows without text; for rows whose truth is known beforehand."""

from typing import NamedTuple

from trainer.analysis.claims.claims import ClaimInputs, JudgedClaims, Measures, Ownership, judge_claims
from trainer.analysis.claims.readout import readout
from trainer.analysis.claims.spaces import spaces
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
    """A crosscoder's claims and what became of them."""

    claimed: Ownership
    weighed: JudgedClaims


def judged(
    store: ActivationStore, crosscoder: Crosscoder, codes: CodeSpool, recipe: AnalysisRecipe, *, progress: Progress
) -> TextlessVerdicts:
    """Encode every row into `codes` and judge every claim by what needs no text: firings, readouts, twins, scaling."""
    encoded = encode_rows(store, crosscoder, codes, spaces(crosscoder, recipe), progress=progress)
    claimed = Ownership.of(crosscoder, decoder_norms(crosscoder), recipe)
    alike = neighbours(Coactivation(codes), Cosines(crosscoder), claimed.owner, 0)
    case = ClaimInputs(
        crosscoder,
        claimed,
        encoded.moments,
        {name: readout(encoded.moments, name) for name in crosscoder.targets},
        Measures.without_text(codes.counts, codes.rows, alike.strongest_twin),
        encoded.scaling,
    )
    return TextlessVerdicts(claimed, judge_claims(case, store, recipe, progress=progress))
