"""Errors shown to visitors, each with an HTTP status, a fact and a remedy."""

import difflib


class ReaderError(Exception):
    """An error that a visitor can cause or fix; shown as a page, a fragment or JSON with its status."""

    status = 400
    title = "This cannot be done"
    retry_after: int | None = None
    """Seconds after which it may work, if waiting helps."""

    def __init__(self, fact: str, *, remedy: str) -> None:
        super().__init__(f"{fact} {remedy}")
        self.fact = fact
        self.remedy = remedy


class BadSetting(ReaderError):
    """An environment variable with an invalid value."""

    status = 500
    title = "The settings cannot be used"


class BadQuery(ReaderError):
    """An invalid filter, sort key or page number in the address."""

    status = 422
    title = "Invalid address"


class BadBody(ReaderError):
    """A field of what was sent is missing or invalid."""

    status = 422
    title = "Invalid request"


class NotFound(ReaderError):
    """The address names something that does not exist."""

    status = 404
    title = "Not found"


class RunNotFound(NotFound):
    """The address names a run that is not on this machine."""

    title = "No such run"

    def __init__(self, run: str, *, known: list[str]) -> None:
        near = difflib.get_close_matches(run, known, n=1, cutoff=0.5)
        listing = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        remedy = f"Did you mean {near[0]!r}?" if near else ""
        if not remedy:
            remedy = f"Runs here: {listing}." if known else "There is no run yet; create one with `make demo`."
        super().__init__(f"No run named {run!r} is on this machine.", remedy=remedy)


class FeatureNotFound(NotFound):
    """The address names a feature that the run does not have."""

    title = "No such feature"

    def __init__(self, run: str, feature: int, *, count: int) -> None:
        super().__init__(
            f"Run {run!r} has no feature {feature}.", remedy=f"Its features are numbered 0 to {count - 1:,}."
        )


class ResultsMissing(ReaderError):
    """The run exists but has published no results yet."""

    status = 404
    title = "No results yet"


class ResultsUnreadable(ReaderError):
    """The run's results file exists but cannot be read."""

    status = 503
    title = "The results cannot be read"
