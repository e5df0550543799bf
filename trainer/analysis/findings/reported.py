"""What findings are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.analysis.behaviour.stage import PairBehaviour
from trainer.analysis.claims.claims import JudgedClaims
from trainer.analysis.per_feature.firings import RowMetadata
from trainer.analysis.rows.codes import CodeSpool
from trainer.recipe.measuring import VerdictRecipe


@dataclass(frozen=True)
class Reported:
    """What findings are made of."""

    judged: JudgedClaims
    owner: Sequence[str]
    """Of every feature."""
    behaviour: Sequence[PairBehaviour]
    metadata: RowMetadata
    codes: CodeSpool
    sources: Sequence[str]
    """Names of the sources of the results."""
    recipe: VerdictRecipe
