"""Recipe sections for evaluation, baselines, analysis and calibration, with their defaults."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.recipe.fitting import MAX_FACTOR, MAX_ROWS, RecipeSection, Seed

Amplitude = Annotated[float, Field(gt=0, le=1_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Frequency = Annotated[float, Field(gt=0, lt=1)]


class EvaluationRecipe(RecipeSection):
    """Measures of the whole crosscoder."""

    sequences: int = Field(default=64, ge=0, le=MAX_ROWS)
    """Held-out sequences on which the models run with their activations replaced; 0 runs none."""


class BaselinesRecipe(RecipeSection):
    """Comparisons of the models without the crosscoder (`trainer/baselines/`)."""

    lens: bool = True
    """The mean activation difference on first tokens, for sources of one space."""
    divergence: bool = True
    """Divergence of the models' predictions on the same text, and the kinds of text on which they differ most."""
    sequences: int = Field(default=200, gt=0, le=MAX_ROWS)
    """Sequences that `divergence` reads, equally many of every corpus part: held-out ones first, then others."""
    diff_sae: bool = False
    """Also train the preset `diff_sae` as a separate run; needs two sources of one space."""


class ContextsRecipe(RecipeSection):
    """Which contexts of a feature are stored."""

    top: int = Field(default=20, gt=0, le=10_000)
    per_quantile: int = Field(default=5, ge=0, le=10_000)
    """Contexts from each fifth of the feature's activation range."""
    window: int = Field(default=48, gt=0, le=100_000)
    """Rows in a context, around the strongest one."""


class VerdictRecipe(RecipeSection):
    """Criteria for supporting or refuting a claim of exclusivity (`trainer/analysis/claims/verdict.py`)."""

    probe_ratio: float = Field(default=0.5, gt=0, le=1)
    """A claim can be supported if the other side tells at most this share of what the owner tells of its firings."""
    probe_ratio_same_space: float = Field(default=0.9, gt=0, le=1)
    """The same where latent scaling is possible, because a fine-tune may use what its base only represents."""
    equal_probe: float = Field(default=0.8, gt=0, le=MAX_FACTOR)
    """A claim is refuted from this probe ratio on."""
    absent_below: float = Field(default=0.1, ge=0, le=1)
    """Up to this probe ratio a feature is absent on the other side, above it is weaker there."""
    excess: float = Field(default=2.0, gt=0, le=MAX_FACTOR)
    """A claim can be supported if the feature's energy, the sum of its squared activations, is at least this many times
    that in noise. From 2 on, noise makes up at most half of it."""
    fdr: float = Field(default=0.1, gt=0, le=1)
    """Largest share of noise to be expected among claims as strong, in a run that is calibrated."""
    twin: float = Field(default=0.5, gt=0, le=1)
    """A claim is refuted if a feature of another owner correlates more than this."""
    nu_error: float = Field(default=0.2, gt=0, le=MAX_FACTOR)
    """Above this ν of latent scaling, a claim is not supported (arXiv 2504.02922)."""
    nu_reconstruction: float = Field(default=0.5, gt=0, le=MAX_FACTOR)
    divergence_ratio: float = Field(default=1.6, ge=1, le=MAX_FACTOR)
    """Two models surely differ more on some text than elsewhere if its divergence ratio has this lower bound."""
    own_probe: float = Field(default=0.05, ge=0, lt=1)
    """Least R-precision of the owner's probe; below it the two sides are not compared."""
    firings: int = Field(default=100, ge=0, le=MAX_ROWS)
    documents: int = Field(default=20, ge=0, le=MAX_ROWS)
    density: float = Field(default=0.05, gt=0, le=1)
    """Maximum density; a feature that fires on more of the rows is unlikely to have one meaning."""
    template_share: float = Field(default=0.5, gt=0, le=1)
    """Maximum share of the firings on chat templates."""
    first_token_share: float = Field(default=0.5, gt=0, le=1)
    """Maximum share of the firings in the first eight rows of a sequence."""
    found_again: float = Field(default=0.5, ge=0, le=1)
    """Minimum share of the other trainings, if any, in which the feature is found: of its own run, and other runs."""


class AnalysisRecipe(RecipeSection):
    """Measures of every feature."""

    contexts: ContextsRecipe = ContextsRecipe()
    logits: int = Field(default=10, ge=0, le=10_000)
    """Number of promoted and of suppressed tokens stored per source."""
    neighbours: int = Field(default=5, ge=0, le=10_000)
    """Number of twins and of similar features stored per feature."""
    exclusive_above: float = Field(default=0.7, gt=0.5, le=1)
    """A feature is claimed for one source if that source's share of the decoder norms is above this."""
    shared_within: tuple[Share, Share] = (0.3, 0.7)
    """A feature of two sources is shared if its norm share is in this range."""
    same_space: Literal["auto"] | tuple[tuple[str, ...], ...] = "auto"
    """Sources that share a space, such as `[[base, tuned]]`, so that latent scaling can apply directions of one to the
    other; `auto` compares the decoder directions, and `[]` means none."""
    other_layers: tuple[Share, ...] | None = None
    """Depths of the other models, as shares of their layers, where probes also look for a feature. None stands for a
    quarter, a half, three quarters and all; `[]` for nowhere."""
    verdict: VerdictRecipe = VerdictRecipe()

    @model_validator(mode="after")
    def _ordered_range(self) -> "AnalysisRecipe":
        low, high = self.shared_within
        if low >= high:
            raise ValueError(f"shared_within is [{low:g}, {high:g}]; give the smaller share first")
        return self


class CalibrationRecipe(RecipeSection):
    """Noise nulls and spike-ins: further trainings with the same recipe, one per source and one, with known truth."""

    rows: int = Field(default=100_000, gt=0, le=MAX_ROWS)
    """Training rows of each training, taken evenly from the store."""
    amplitudes: tuple[Amplitude, ...] = Field(default=(0.1, 0.2, 0.4), min_length=1, max_length=100)
    """Norms of the added directions, in units of a source's typical distance from its mean."""
    frequencies: tuple[Frequency, ...] = Field(default=(0.001, 0.01), min_length=1, max_length=100)
    """Shares of the rows on which a spike-in is added."""
    per_cell: int = Field(default=8, gt=0, le=10_000)
    """Spike-ins per amplitude and frequency, in each source alone and in all together."""
    seed: Seed = 0
