"""Dump: a MediaWiki export, read page by page; one that breaks off gives its complete pages."""

import html
import re
from collections.abc import Iterator
from typing import TextIO

OPENING = "<mediawiki"
"""How an export begins."""
PAGE_CHARACTERS = 2_000_000
"""Longer pages are cut; no encyclopaedia has one."""

_NAMESPACE = re.compile(r'<namespace key="(?!0")-?\d+"[^<>]*>([^<]+)</namespace>')
_TITLE = re.compile(r"<title>([^<]*)</title>")
_REDIRECT = re.compile(r"\s*#\s*redirect", re.IGNORECASE)
_TEXT = re.compile(r"<text\b[^<>]*>")


def pages(stream: TextIO) -> Iterator[str]:
    """Markup of every article; redirects and pages about the wiki itself are left out."""
    lines = iter(lambda: stream.readline(PAGE_CHARACTERS), "")
    namespaces: set[str] = set()
    title = ""
    for line in lines:
        if found := _NAMESPACE.search(line):
            namespaces.add(html.unescape(found[1]))
        elif found := _TITLE.search(line):
            title = html.unescape(found[1])
        elif (found := _TEXT.search(line)) and not found[0].endswith("/>"):
            markup = _until_closed(line[found.end() :], lines)
            is_article = title.partition(":")[0] not in namespaces or ":" not in title
            if markup is not None and is_article and not _REDIRECT.match(markup):
                yield html.unescape(markup)


def _until_closed(first: str, lines: Iterator[str]) -> str | None:
    """The text up to its closing tag; None when the file ends before."""
    kept: list[str] = []
    size = 0
    line: str | None = first
    while line is not None:
        before, closed, _ = line.partition("</text>")
        if size < PAGE_CHARACTERS:
            kept.append(before)
            size += len(before)
        if closed:
            return "".join(kept)
        line = next(lines, None)
    return None
