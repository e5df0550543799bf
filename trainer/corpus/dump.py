"""Reads the articles of a MediaWiki XML export; a truncated export yields its complete pages."""

import html
import re
from collections.abc import Iterator
from typing import TextIO

ROOT_TAG = "<mediawiki"
"""First characters of an export."""
MAX_PAGE_CHARACTERS = 2_000_000
"""Longer pages are cut; encyclopaedias have none."""

_NAMESPACE = re.compile(r'<namespace key="(?!0")-?\d+"[^<>]*>([^<]+)</namespace>')
_TITLE = re.compile(r"<title>([^<]*)</title>")
_REDIRECT = re.compile(r"\s*#\s*redirect", re.IGNORECASE)
_ENDLESS_NUMBER = re.compile(r"&#[0-9]{4300,};?")
_TEXT = re.compile(r"<text\b[^<>]*>")


def read_articles(stream: TextIO) -> Iterator[str]:
    """Yield the markup of every article; skips redirects and pages outside the main namespace."""
    lines = iter(lambda: stream.readline(MAX_PAGE_CHARACTERS), "")
    namespaces: set[str] = set()
    title = ""
    for line in lines:
        if match := _NAMESPACE.search(line):
            namespaces.add(_unescape(match[1]))
        elif match := _TITLE.search(line):
            title = _unescape(match[1])
        elif (match := _TEXT.search(line)) and not match[0].endswith("/>"):
            markup = _text_element(line[match.end() :], lines)
            is_article = title.partition(":")[0] not in namespaces or ":" not in title
            if markup is not None and is_article and not _REDIRECT.match(markup):
                yield _unescape(markup)


def _unescape(text: str) -> str:
    """The text with its entities as characters; one with more digits than Python reads becomes U+FFFD, as too large."""
    return html.unescape(_ENDLESS_NUMBER.sub("\ufffd", text))


def _text_element(first: str, lines: Iterator[str]) -> str | None:
    """Content of a `<text>` element up to its closing tag; None if the file ends first."""
    kept: list[str] = []
    size = 0
    line: str | None = first
    while line is not None:
        before, closed, _ = line.partition("</text>")
        if size < MAX_PAGE_CHARACTERS:
            kept.append(before)
            size += len(before)
        if closed:
            return "".join(kept)
        line = next(lines, None)
    return None
