"""The steering form: its fields as typed or by default, and what is wrong with them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.errors import FeatureNotFound
from app.generations.request import SteeringRequest
from app.results.connection import Results
from app.results.features.feature import Feature, InSource, in_sources, one_feature


@dataclass(frozen=True)
class SteerForm:
    """What stands in the steering form."""

    run: str
    feature: Feature | None
    """None when the address names none, or one that is not there."""
    sources: tuple[str, ...]
    not_written: tuple[str, ...]
    """Sources that the feature does not write to: there steering changes exactly nothing."""
    values: dict[str, str]
    """By field; as typed, or the default."""
    problems: dict[str, str]
    """By field; empty when it can be sent."""
    panel: bool = False
    """Whether the form is part of a feature's page."""


def steer_form(results: Results, typed: dict[str, str], problems: dict[str, str] | None = None) -> SteerForm:
    """The form for a feature of this run, filled with what was typed and defaults."""
    fields = SteeringRequest.model_fields
    values = {name: "" if field.is_required() else str(field.default) for name, field in fields.items()}
    values |= {name: typed[name] for name in values if typed.get(name)}
    feature, wrong = None, dict(problems or {})
    not_written: tuple[str, ...] = ()
    if values["feature"]:
        try:
            feature = one_feature(results, int(values["feature"]))
            not_written = _not_written(in_sources(results, feature.feature))
        except (ValueError, FeatureNotFound) as error:
            wrong["feature"] = str(error) if isinstance(error, FeatureNotFound) else "feature: a number is needed."
    names = tuple(source.name for source in results.sources)
    return SteerForm(results.run, feature, names, not_written, values, wrong)


def panel_form(results: Results, feature: Feature, inside: Sequence[InSource]) -> SteerForm:
    """The form on a feature's page, with every default; the page has read the feature already."""
    form = steer_form(results, {})
    values = {**form.values, "feature": str(feature.feature)}
    return replace(form, feature=feature, not_written=_not_written(inside), values=values, panel=True)


def _not_written(inside: Sequence[InSource]) -> tuple[str, ...]:
    return tuple(source.name for source in inside if not source.writes)
