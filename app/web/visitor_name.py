"""Keeps the name that a visitor signs with in a cookie."""

from fastapi import Request
from fastapi.responses import Response

from app.labels.wording import NAME_COOKIE, name_to_cookie

A_YEAR = 365 * 24 * 3600
"""Seconds that a browser keeps the name."""


def remember_name(request: Request, answer: Response, author: str) -> None:
    """Store the name in a cookie that scripts cannot read."""
    answer.set_cookie(
        NAME_COOKIE,
        name_to_cookie(author),
        max_age=A_YEAR,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
        path=f"{request.app.state.settings.root_path}/",
    )
