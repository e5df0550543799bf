"""Recipe measures: what to measure of a crosscoder; their defaults live here and nowhere else."""

from typing import Literal

from pydantic import Field

from trainer.recipe.fitting import Part


class EvaluationRecipe(Part):
    """What to measure of the whole crosscoder."""

    sequences: int = Field(default=64, ge=0)
    """Held-out sequences on which the models run with their activations replaced; 0 runs none."""


class BaselinesRecipe(Part):
    """What to compare without the crosscoder (`trainer/baselines/`)."""

    lens: bool = True
    """The mean activation difference on first tokens, for sources of one space."""
    divergence: bool = True
    """How differently the models go on from the same held-out text."""
    sequences: int = Field(default=12, gt=0)
    """Held-out sequences that `divergence` reads, an equal share of every corpus part."""
    diff_sae: bool = False
    """Also train the preset `diff_sae`, as a run of its own beside this one; needs two sources of one space."""


class ContextsRecipe(Part):
    """Which contexts of a feature are kept."""

    top: int = Field(default=20, gt=0)
    per_quantile: int = Field(default=5, ge=0)
    """Contexts from each fifth of the feature's activation range."""
    window: int = Field(default=48, gt=0)
    """Rows shown around the strongest one."""


class VerdictRecipe(Part):
    """What it takes for a claim of exclusivity to be supported or refuted (`trainer/analysis/claims/verdict.py`)."""

    q_value: float = Field(default=0.05, gt=0, le=1)
    """Supported claims may be wrong this often, as far as decoys tell."""
    readout_contrast: float = Field(default=0.5, gt=0, le=1)
    """Of what the owner's activations tell of a supported feature, the other side's tell at most this share."""
    readout_contrast_same_space: float = Field(default=0.9, gt=0, le=1)
    """The same where latent scaling was possible, because a fine-tune may use what its base only carries."""
    equal_readout: float = Field(default=0.8, gt=0)
    """A claim is refuted when the other side's activations tell at least this share."""
    absent_below: float = Field(default=0.1, ge=0, le=1)
    """Up to this readout ratio a feature is absent on the other side, above it is weaker there."""
    refuted_from: float = Field(default=0.1, gt=0, le=1)
    """A claim is refuted when at least this share of the decoys look as exclusive."""
    twin: float = Field(default=0.5, gt=0, le=1)
    """A claim is refuted when a feature of another owner correlates more than this."""
    nu_error: float = Field(default=0.2, gt=0)
    """Latent scaling leaves a claim in doubt above this (arXiv 2504.02922)."""
    nu_reconstruction: float = Field(default=0.5, gt=0)
    owner_readout: float = Field(default=0.02, ge=0, lt=1)
    """Variance of the feature that its owner's activations explain at least; below, readouts cannot be compared."""
    firings: int = Field(default=100, ge=0)
    documents: int = Field(default=20, ge=0)
    density: float = Field(default=0.05, gt=0, le=1)
    """What fires on more of the rows than this is unlikely to mean one thing."""
    template_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the firings that may lie on chat templates."""
    first_token_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the firings that may lie in the first eight rows of a sequence."""
    found_again: float = Field(default=0.5, ge=0, le=1)
    """Share of the other runs of the same comparison, where there are any, that have the feature too."""


class AnalysisRecipe(Part):
    """What to measure of every feature."""

    contexts: ContextsRecipe = ContextsRecipe()
    logits: int = Field(default=10, ge=0)
    """Tokens promoted, and as many suppressed, kept per source."""
    neighbours: int = Field(default=5, ge=0)
    """Twins and similar features kept per feature."""
    exclusive_above: float = Field(default=0.7, gt=0.5, le=1)
    """A feature is claimed for one source when that source's share of the decoder norms is above this."""
    shared_within: tuple[float, float] = (0.3, 0.7)
    """A feature of two sources is shared when its norm share lies in this band."""
    same_space: Literal["auto"] | tuple[tuple[str, ...], ...] = "auto"
    """Sources that share a space, such as `[[base, tuned]]`, so that latent scaling can look for a direction of one in
    the other; `auto` asks the decoder directions, and `[]` means none."""
    decoys: int = Field(default=1024, ge=0)
    """Shared features, per owner, that are tested as if they were claimed, to learn what false claims look like."""
    verdict: VerdictRecipe = VerdictRecipe()


class CalibrationRecipe(Part):
    """Two further trainings with the same recipe, on data whose truth is known."""

    rows: int = Field(default=100_000, gt=0)
    """Training rows of each, taken evenly from the store."""
    amplitudes: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Lengths of what a spike-in adds, in units of a source's typical distance from its mean."""
    frequencies: tuple[float, ...] = (0.001, 0.01)
    """Shares of the rows on which a spike-in fires."""
    per_cell: int = Field(default=8, gt=0)
    """Spike-ins of every amplitude and frequency in every source alone, and in all together."""
    seed: int = 0
