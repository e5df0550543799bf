"""Blind: the analysis' own test of all claims, on rows without text; for rows whose truth is known beforehand."""

from typing import NamedTuple

from trainer.activation_store import ActivationStore
from trainer.analysis.claims import Case, Claimed, Measures, Weighed, weigh
from trainer.analysis.coactivation import Coactivation
from trainer.analysis.codes import CodeSpool
from trainer.analysis.decoder_norms import decoder_norms
from trainer.analysis.encode_pass import encode_rows
from trainer.analysis.readout import readout
from trainer.analysis.spaces import spaces
from trainer.analysis.twins import Cosines, neighbours
from trainer.crosscoder import Crosscoder
from trainer.progress import Progress
from trainer.recipe import AnalysisRecipe


class Judged(NamedTuple):
    """A crosscoder's claims and what became of them."""

    claimed: Claimed
    weighed: Weighed


def judged(
    store: ActivationStore, crosscoder: Crosscoder, codes: CodeSpool, recipe: AnalysisRecipe, *, progress: Progress
) -> Judged:
    """Encode every row into `codes` and judge every claim by what needs no text: firings, readouts, twins, scaling."""
    encoded = encode_rows(store, crosscoder, codes, spaces(crosscoder, recipe), progress=progress)
    claimed = Claimed.of(crosscoder, decoder_norms(crosscoder), recipe)
    alike = neighbours(Coactivation(codes), Cosines(crosscoder), claimed.owner, 0)
    case = Case(
        crosscoder,
        claimed,
        encoded.moments,
        {name: readout(encoded.moments, name) for name in crosscoder.targets},
        Measures.without_text(codes.counts, codes.rows, alike.strongest_twin),
        encoded.scaling,
    )
    return Judged(claimed, weigh(case, store, recipe, progress=progress))
