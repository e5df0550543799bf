"""Sets security headers on every answer; refuses cross-site writes, foreign names and requests beyond the limits."""

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.settings import is_address

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        # Form controls and exported plots are drawn from data and blob addresses.
        "img-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})


LONGEST_ADDRESS = 8000
"""Bytes of path and query."""
LARGEST_BODY = 2**20
"""Bytes of a form or a JSON body; the longest label and prompt are far below."""
HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[^\[\]:/?#@\\\s]+?)\.?)(?::\d*)?", re.IGNORECASE)


class SecurityHeaders:
    """Adds the headers above to every answer that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and complete the headers of the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, complete)


class SameOriginWrites:
    """Refuses an unsafe request that a browser sends on behalf of another site.

    Browsers send its origin (Sec-Fetch-Site, or Origin in old ones); a client that sends neither is no browser
    and is not open to cross-site request forgery.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to a cross-origin write; pass everything else on."""
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS and _is_foreign(Headers(scope=scope)):
            refusal = _refusal(
                403, "Refused", "Another site asked for this change.", "Make it from a page of this explorer."
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


class KnownHosts:
    """Refuses requests for a name that is not this explorer's.

    A page of another site can make its own name lead here (DNS rebinding), and then counts as the same site. It needs
    a name for that, so addresses pass.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", *(name.casefold().rstrip(".") for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 421 to a foreign name; pass everything else on."""
        host = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if host and not self._is_known(host):
            name = host[:100].encode("ascii", "replace").decode()
            remedy = (
                "Open it by its address, such as http://127.0.0.1:8000, or start it with CROSSDIFF_HOSTS set to the "
                "names under which people reach it, separated by commas."
            )
            await _refusal(421, "Unknown host", f"This explorer does not go by the name {name!r}.", remedy)(
                scope, receive, send
            )
            return
        await self._app(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        found = HOST.fullmatch(host)
        if found is None:
            return False
        if found["ipv6"]:
            return is_address(found["ipv6"])
        name = found["name"].casefold()
        return name in self._names or name.endswith(".localhost") or is_address(name)


class RequestLimits:
    """Refuses addresses and bodies that no page makes, before they take memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 414 or 413 beyond the limits; pass everything else on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST_ADDRESS:
            remedy = "Use fewer filters, or start from the list without any."
            refusal = _refusal(414, "Address too long", f"It has more than {LONGEST_ADDRESS:,} bytes.", remedy)
            await refusal(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > LARGEST_BODY:
            await _too_large()(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST_BODY:
                raise HTTPException(413, "More was sent than a form holds")
            return message

        await self._app(scope, count, send)


def _too_large() -> JSONResponse:
    fact = f"More than {LARGEST_BODY:,} bytes were sent."
    return _refusal(413, "Too large", fact, "Send less; a label has a few thousand characters at most.")


def _refusal(status: int, title: str, message: str, remedy: str) -> JSONResponse:
    """A refusal before any page is asked; the connection ends with it, and so does what is still being sent."""
    error = {"status": status, "title": title, "message": message, "remedy": remedy}
    return JSONResponse({"error": error}, status, {"Connection": "close"})


def _is_foreign(headers: Headers) -> bool:
    """Whether the headers of an unsafe request show that another site sent it."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
