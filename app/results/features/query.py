"""Filters, order and page of the feature list, as query parameters and as SQL."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.errors import BadQuery
from app.results.connection import Results
from app.results.features.search import Search

MOST_CHOICES = 30
"""Values that may be chosen of a facet."""
PER_PAGE = 50
"""Features on one page of the list."""


def _none_if_blank(value: object) -> object:
    """Forms send empty fields as empty strings."""
    return None if isinstance(value, str) and not value.strip() else value


def _without_blanks(value: object) -> object:
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(item for item in values if item not in (None, ""))


Bound = Annotated[float | None, BeforeValidator(_none_if_blank)]
Choices = Annotated[
    tuple[Annotated[str, Field(max_length=200)], ...], BeforeValidator(_without_blanks), Field(max_length=MOST_CHOICES)
]

SORTS = {
    "relevance": "h.relevance",
    "score": "f.score",
    "feature": "f.feature",
    "owner": "f.owner",
    "density": "f.density",
    "max_activation": "f.max_activation",
    "norm_share": "s.norm_share",
    "template_share": "f.template_share",
    "documents": "f.documents",
    "corpus": "f.main_corpus",
    "verdict": "f.verdict",
    "kind": "f.kind",
    "probe_ratio": "f.probe_ratio",
    "excess": "f.excess",
    "fdr": "f.fdr",
}
"""What the list can be sorted by."""

FACETS = {
    "owner": "f.owner",
    "verdict": "f.verdict",
    "kind": "f.kind",
    "group": "f.group_name",
    "corpus": "f.main_corpus",
    "language": "f.main_language",
}
"""Columns that the list can be filtered by, value by value."""

RANGES = {
    "density": "f.density",
    "share": "s.norm_share",
    "activation": "f.max_activation",
    "template": "f.template_share",
    "probe": "f.probe_ratio",
    "excess": "f.excess",
    "fdr": "f.fdr",
}
"""Columns that the list can be filtered by with bounds."""

GONE = {"q_value": "fdr", "readout_ratio": "probe_ratio", "q": "fdr", "readout": "probe"}
"""Orders and ranges of former versions, with what is nearest to them today. Their values mean something else."""

ASCENDING = ("feature", "owner", "corpus", "verdict", "kind", "probe_ratio", "fdr")
"""Columns that are first sorted ascending."""


class FeatureQuery(BaseModel):
    """Filters, order and page of the feature list; absent values do not restrict."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    owner: Choices = ()
    verdict: Choices = ()
    """`none` stands for features that make no claim."""
    kind: Choices = ()
    """absent, weaker, analogue or noise: how the owner differs from the others."""
    group: Choices = ()
    corpus: Choices = ()
    language: Choices = ()
    """ISO 639 code of the language that most firings are in; `und` where it is not clear."""
    life: str = Field(default="", pattern="^(|alive|dead)$")
    q: str = Field(default="", max_length=200)
    """Text to look for; digits alone are a feature's index."""
    within: str = Field(default="", pattern="^(|labels|contexts|peaks|promoted)$")
    """Where to look for it; everywhere when empty."""
    share_of: str = ""
    """The source whose norm share is meant; the last one when empty."""
    density_min: Bound = None
    density_max: Bound = None
    share_min: Bound = None
    share_max: Bound = None
    activation_min: Bound = None
    activation_max: Bound = None
    template_min: Bound = None
    template_max: Bound = None
    probe_min: Bound = None
    probe_max: Bound = None
    excess_min: Bound = None
    excess_max: Bound = None
    fdr_min: Bound = None
    fdr_max: Bound = None
    sort: str = ""
    """A column, `-` before it for descending; by relevance of the text, else by score, when empty."""
    page: int = Field(default=1, ge=1, le=100_000)

    @model_validator(mode="after")
    def _shortest(self) -> "FeatureQuery":
        """Leave out an order that is the default anyway."""
        if self.sort == self._default_sort:
            object.__setattr__(self, "sort", "")
        return self

    @model_validator(mode="before")
    @classmethod
    def _without_former_bounds(cls, values: Any) -> Any:
        """Refuse bounds of former versions: to ignore them would show other features than the address asks for."""
        for name in ("q", "readout"):
            for end in ("min", "max"):
                key = f"{name}_{end}"
                if isinstance(values, dict) and values.get(key):
                    raise BadQuery(
                        f"The list has no bound {key!r} any more, and claims are judged by other measures.",
                        remedy=f"Leave it out, or use `{GONE[name]}_{end}`.",
                    )
        return values

    def pairs(self, **changes: Any) -> list[tuple[str, str]]:
        """Query parameters of the state, without defaults; `changes` replace fields."""
        state = {**self.__dict__, **changes}
        pairs: list[tuple[str, str]] = []
        for name, default in _DEFAULTS.items():
            value = state[name]
            if value is None or value in (default, ""):
                continue
            values = value if isinstance(value, tuple) else (value,)
            pairs += [(name, f"{item:.9g}" if isinstance(item, float) else str(item)) for item in values]
        return pairs

    def set_filters(self) -> list["SetFilter"]:
        """What narrows the list, each with the state without it."""
        found = [SetFilter("text", self.q, self.pairs(q="", within="", page=1))] if self.q.strip() else []
        for facet in FACETS:
            found += [SetFilter(facet, value, self.toggled(facet, value)) for value in getattr(self, facet)]
        if self.life:
            found.append(SetFilter("life", self.life, self.pairs(life="", page=1)))
        for name in RANGES:
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low is not None or high is not None:
                value = f"{'' if low is None else f'{low:g}'} – {'' if high is None else f'{high:g}'}".strip()
                found.append(SetFilter(name, value, self.pairs(**{f"{name}_min": None, f"{name}_max": None}, page=1)))
        return found

    def toggled(self, facet: str, value: str) -> list[tuple[str, str]]:
        """The state with one value of a facet added or taken away, on the first page."""
        chosen: tuple[str, ...] = getattr(self, facet)
        now = tuple(item for item in chosen if item != value) if value in chosen else (*chosen, value)
        return self.pairs(**{facet: now, "page": 1})

    def sorted_by(self, column: str) -> list[tuple[str, str]]:
        """The state sorted by a column; the present sort column is reversed."""
        first = column if column in ASCENDING else f"-{column}"
        second = column if first.startswith("-") else f"-{column}"
        sort = second if self.sorting == first else first
        return self.pairs(sort="" if sort == self._default_sort else sort, page=1)

    @property
    def sorting(self) -> str:
        """The order, also where it is the default."""
        return self.sort or self._default_sort

    @property
    def _default_sort(self) -> str:
        return "-relevance" if self.q.strip() else "-score"

    @property
    def order(self) -> str:
        """ORDER BY expression; ties are broken by index, so that paging is stable. Raises BadQuery."""
        column = self.sorting.removeprefix("-")
        if column not in SORTS:
            raise BadQuery(f"The list cannot be sorted by {column!r}.", remedy=f"Sort by one of: {', '.join(SORTS)}.")
        if column == "relevance" and not self.q.strip():
            raise BadQuery("Relevance needs a text.", remedy="Search for something, or sort by score.")
        direction = "desc" if self.sorting.startswith("-") else "asc"
        ties = "f.score desc nulls last, " if column == "relevance" else ""
        return f"{SORTS[column]} {direction} nulls last, {ties}f.feature"

    @property
    def narrowed(self) -> bool:
        """Whether any filter is set."""
        return bool(self._restricting())

    @property
    def narrowed_beside_text(self) -> bool:
        """Whether a filter other than the search text is set."""
        return bool(self._restricting() - {"q", "within"})

    def _restricting(self) -> set[str]:
        return {name for name, _ in self.pairs()} - {"sort", "page", "share_of"}


@dataclass(frozen=True)
class SetFilter:
    """One thing that narrows the list."""

    name: str
    """text, life, or the name of a facet or range."""
    value: str
    without: list[tuple[str, str]]
    """Query parameters of the state without it."""


_DEFAULTS = {name: field.default for name, field in FeatureQuery.model_fields.items()}


@dataclass(frozen=True)
class Selection:
    """A WHERE clause with its parameters.

    `f` is the feature's row, `s` its row for the chosen source, `h` what a search found of it.
    """

    conditions: tuple[str, ...]
    parameters: dict[str, Any]
    search: Search | None = None

    def from_where(self, *used: str) -> tuple[str, dict[str, Any]]:
        """FROM and WHERE with their parameters; joins sources if a condition or an expression in `used` needs them."""
        where = f"where {' and '.join(self.conditions)}" if self.conditions else ""
        parameters, joins = dict(self.parameters), ""
        if self.search is not None:
            joins = f"join ({self.search.sql}) h on h.feature = f.feature "
            parameters |= self.search.all_parameters
        if any("s." in text for text in (*self.conditions, *used)):
            joins += "left join feature_source s on s.feature = f.feature and s.source = $share_source"
        else:
            del parameters["share_source"]
        return f"from feature f {joins} {where}", parameters


def select(query: FeatureQuery, results: Results, *, found: Search | None, without: str | None = None) -> Selection:
    """The query's restrictions as SQL; `found` is the search for its text, None when it has no text.

    `without` leaves one facet's own restriction out, for counting its other values. Raises BadQuery.
    """
    conditions: list[str] = []
    parameters: dict[str, Any] = {"share_source": share_source(query, results)}
    for facet, column in FACETS.items():
        chosen = getattr(query, facet)
        if chosen and facet != without:
            values = ["" if facet == "verdict" and item == "none" else item for item in chosen]
            conditions.append(f"list_contains($in_{facet}, {column})")
            parameters[f"in_{facet}"] = values
    if query.life and without != "life":
        conditions.append("f.firings > 0" if query.life == "alive" else "f.firings = 0")
    for name, column in RANGES.items():
        for end, sign in (("min", ">="), ("max", "<=")):
            bound = getattr(query, f"{name}_{end}")
            if bound is not None:
                conditions.append(f"{column} {sign} ${name}_{end}")
                parameters[f"{name}_{end}"] = bound
    return Selection(tuple(conditions), parameters, found)


def share_source(query: FeatureQuery, results: Results) -> int:
    """Index of the source whose norm share the list shows. Raises BadQuery."""
    if not query.share_of:
        return results.sources[-1].source
    for source in results.sources:
        if source.name == query.share_of:
            return source.source
    known = ", ".join(source.name for source in results.sources)
    raise BadQuery(f"The run has no source named {query.share_of!r}.", remedy=f"Its sources are {known}.")
