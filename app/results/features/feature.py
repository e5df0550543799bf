"""Measures of one feature, over all sources and in each, with its histogram, logits and neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import FeatureNotFound, NotFound
from app.results.connection import Results
from app.results.features.tokens import visible


@dataclass(frozen=True)
class Feature:
    """Measures of a feature over all sources."""

    feature: int
    group: str
    content_hash: str
    """Of the decoder directions; survives re-indexing."""
    owner: str
    firings: int
    density: float
    """Firings per row analysed, 0 to 1."""
    max_activation: float
    """Unscaled; steering strength is counted in it."""
    mean_activation: float | None
    template_share: float | None
    first_token_share: float | None
    documents: int | None
    corpus: str | None
    """The corpus part that holds most of its firings."""
    corpus_share: float | None
    verdict: str
    fdr: float | None
    """Expected share of noise among claims as strong; None without calibration."""
    score: float | None
    language: str | None = None
    """The language that most of its firings are in."""
    language_share: float | None = None
    coherence: float | None = None
    """Mean similarity of the activations at its firings; 0 for rows that have nothing in common."""
    polysemous: bool | None = None
    """Whether its coherence is low enough that it may stand for several things."""
    probe_ratio: float | None = None
    """R-precision of the other sources' best probe over that of the owner's."""
    probe_low: float | None = None
    """Bounds of its 90 % interval over documents."""
    probe_high: float | None = None
    excess: float | None = None
    """Firings over those that noise of the same shape would give."""
    excess_low: float | None = None
    """Bounds of its 90 % interval over documents."""
    excess_high: float | None = None
    kind: str | None = None
    """absent, weaker, analogue or noise: how the owner differs, if the claim stands."""
    found_in: int | None = None
    """Other trainings that have it too."""
    looked_in: int | None = None
    """Other trainings that were searched for it."""

    @property
    def claimed(self) -> bool:
        """Whether it is claimed for its owner alone."""
        return bool(self.verdict)


COLUMNS = """
    feature, group_name, content_hash, owner, firings, density, max_activation, mean_activation, template_share,
    first_token_share, documents, main_corpus, main_corpus_share, verdict, fdr, score, main_language,
    main_language_share, coherence, polysemous, probe_ratio, probe_low, probe_high, excess,
    excess_low, excess_high, kind, found_in, looked_in
"""


@dataclass(frozen=True)
class InSource:
    """Measures of a feature in one source."""

    source: int
    name: str
    decoder_norm: float
    encoder_norm: float
    norm_share: float
    relative_norm: float | None
    nu_reconstruction: float | None
    nu_error: float | None
    readout: float | None

    @property
    def writes(self) -> bool:
        """Whether the feature can write to this source at all."""
        return self.decoder_norm > 0


@dataclass(frozen=True)
class SourceProbe:
    """How well a linear probe of one source tells where a claimed feature fires, on documents it was not fitted on."""

    source: int
    name: str
    r_precision: float
    """Share of the firings among the rows that it ranks first, as many as there are firings."""
    auc: float
    """Chance that it ranks a row with a firing above one without; ½ for a probe that tells nothing."""


@dataclass(frozen=True)
class LayerProbe:
    """How well a probe of another layer of another source's model tells where a claimed feature fires."""

    source: int
    name: str
    layer: int
    probe_ratio: float
    """R-precision over that of the best probe inside the owner, on the same rows."""
    probe_low: float
    probe_high: float


@dataclass(frozen=True)
class PairDivergence:
    """How much farther apart two models' predictions are where a feature fires than elsewhere."""

    base: str
    source: str
    ratio: float
    low: float
    high: float
    documents: int
    """Groups of documents in which it fires, of those compared."""


@dataclass(frozen=True)
class ActivationBin:
    """One bin of the activation histogram."""

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Logit:
    """A token that the feature promotes or suppresses in one source."""

    token: str
    effect: float

    @property
    def shown(self) -> str:
        """The token with nothing invisible in it."""
        return visible(self.token) if self.token.strip(" ") else "·" * len(self.token)


@dataclass(frozen=True)
class Logits:
    """Logit effects of a feature in one source, strongest first on both sides."""

    source: int
    promoted: tuple[Logit, ...]
    suppressed: tuple[Logit, ...]


@dataclass(frozen=True)
class Neighbour:
    """A related feature, as a candidate for one meaning split in two."""

    feature: int
    kind: str
    """twin, similar or coactive."""
    owner: str
    density: float
    cosine: float | None
    correlation: float | None


def feature_of_id(results: Results, content_hash: str) -> int:
    """Index of the feature with a content hash, which stays the same when a run is trained again. Raises NotFound."""
    found = results.row("select feature from feature where content_hash = $hash limit 1", hash=content_hash)
    if found is None:
        raise NotFound(
            f"No feature of {results.run} has the id {content_hash!r}.", remedy="Search the list of features."
        )
    return int(found[0])


def one_feature(results: Results, feature: int) -> Feature:
    """The feature's measures. Raises FeatureNotFound."""
    sql = f"select {COLUMNS} from feature where feature = $feature"  # noqa: S608 - our names
    row = results.row(sql, feature=feature)
    if row is None:
        raise FeatureNotFound(results.run, feature, count=results.features)
    return Feature(*row)


def in_sources(results: Results, feature: int) -> list[InSource]:
    """The feature's measures per source, in order of the sources."""
    names = {source.source: source.name for source in results.sources}
    rows = results.rows(
        """
        select source, decoder_norm, encoder_norm, norm_share, relative_norm, nu_reconstruction, nu_error, readout
        from feature_source where feature = $feature order by source
        """,
        feature=feature,
    )
    return [InSource(source, names[source], *rest) for source, *rest in rows]


def strongest(logits: Sequence[Logits]) -> float:
    """Largest absolute effect over all sources, the common scale of the bars; 0 without logits."""
    return max((abs(one.effect) for each in logits for one in (*each.promoted, *each.suppressed)), default=0.0)
