"""Number and time formats of pages."""

import datetime
import math


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits and thousands separators; a dash for None and for what is no number."""
    if value is None:
        return "–"
    if isinstance(value, int) or value == 0:
        return f"{int(value):,}"
    if not math.isfinite(value):
        return "–"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; tiny shares keep two significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 0.001:
        return f"{number(value * 100, 2)} %"
    return f"{value * 100:.{digits}f} %"


def compact(value: float | None) -> str:
    """A count in few characters: 950, 12.3k, 4.5M."""
    if value is None or not math.isfinite(value):
        return "–"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if suffix == "k" else size
            return f"{value / unit:.3g}{suffix}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign."""
    return "–" if value is None or not math.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """A span of time: 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(value: datetime.datetime | None) -> str:
    """A point in time, UTC, to the minute."""
    return "–" if value is None else value.strftime("%Y-%m-%d %H:%M")


def ago(value: datetime.datetime | None, now: datetime.datetime | None = None) -> str:
    """Time since `value`, in words."""
    if value is None:
        return "–"
    now = now or datetime.datetime.now(datetime.UTC)
    if value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    seconds = max((now - value).total_seconds(), 0)
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "just now"
