"""Converts MediaWiki markup to plain text.

A library parses the markup. The text of each node is chosen here, because the library's own conversion keeps
captions, categories and links to other languages.
"""

import re
from typing import Any

LINK_LISTS = {
    "bibliography",
    "external link",
    "external links",
    "further reading",
    "footnotes",
    "notes",
    "references",
    "related articles",
    "see also",
    "sources",
}
"""Headings of sections that hold links rather than sentences."""
DROPPED_TAGS = {
    *("ref", "references", "math", "chem", "table", "tr", "td", "th", "gallery", "timeline", "imagemap"),
    *("source", "syntaxhighlight", "score", "hiero", "style", "script", "hr"),
}
MAX_UNCLOSED = 300
"""Pages with more unclosed tags, tables or templates are dropped: the parser would take minutes."""
MAX_UNCLOSED_COMMENTS = 3
"""For each of them the parser reads the rest of the page once per link that is open."""
LINE_BREAK_TAGS = {"br", "p", "div", "center", "blockquote"}

_BULLETS = {"*": "- ", "#": "- ", ":": "", ";": ""}
_PREFIX = re.compile(r"^\s*:?([^\[\]|:]{2,40}):")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]{2,12})*|simple")
_PAIRS = [
    (re.compile(r"<(?!br\b)[a-zA-Z]"), re.compile(r"</|/>")),
    (re.compile(r"\{\|"), re.compile(r"\|\}")),
    (re.compile(r"\{\{"), re.compile(r"\}\}")),
    (re.compile(r"\[\[?"), re.compile(r"\]\]?")),
]
# Removes tags inside the parser's text nodes. Escaped tags are meant to be visible, and are not text nodes.
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,200}>")
_HATNOTE = (
    r"^(?:- )?(?:Main articles?:|See also:|This article is about|For [^\n]{1,120}\bsee\b|Alternat(?:e|ive) meanings?:)"
    r"[^\n]{0,200}$"
)
_CLEANUPS = [
    # White space is matched whether a table follows or not, so that a long run of it is read once.
    (re.compile(r"^(?:\s*+(?:\{\||\|\}|\|-|!|\|).*$|(\s++))", re.MULTILINE), r"\1"),
    (re.compile(r"__[A-Z]{3,20}__"), ""),
    (re.compile(r"'{2,5}"), ""),
    (re.compile(r"\[\[|\]\]|\{\{|\}\}"), ""),
    (re.compile(r"[ \t\xa0]+"), " "),
    (re.compile(r" ?(?:\([ ,;:]*\)|\[ ?\])"), ""),
    (re.compile(r"(?<! ) +([,.;:)])(?=\s|$)"), r"\1"),
    (re.compile(r",{2,}"), ","),
    (re.compile(r"^(?:- ?){2,}", re.MULTILINE), "- "),
    (re.compile(_HATNOTE, re.MULTILINE), ""),
    (re.compile(r"\( +"), "("),
    (re.compile(r"^[ \t]+|(?<![ \t])[ \t]+$", re.MULTILINE), ""),
    (re.compile(r"^[-–—*#:;,.|!=\s]+$", re.MULTILINE), ""),
    (re.compile(r"\n{3,}"), "\n\n"),
]


def strip_wikitext(markup: str) -> str:
    """Plain text of a page, without templates, tables, references, files, categories and link lists.

    Links, emphasis and headings keep their text; a bullet becomes `- `. Handles about 3 MB of markup per second.
    Markup with more than MAX_UNCLOSED unclosed elements, or MAX_UNCLOSED_COMMENTS comments, gives an empty text.
    """
    import mwparserfromhell

    if markup.count("<!--") - markup.count("-->") > MAX_UNCLOSED_COMMENTS:
        return ""
    if any(len(opening.findall(markup)) - len(closing.findall(markup)) > MAX_UNCLOSED for opening, closing in _PAIRS):
        return ""
    text = _plain_text(mwparserfromhell.parse(_without_link_lists(markup), skip_style_tags=True))
    for pattern, replacement in _CLEANUPS:
        text = pattern.sub(replacement, text)
    return text.strip()


def _without_link_lists(markup: str) -> str:
    """The markup without its sections of links."""
    pieces = re.split(r"^(={2,6}[^=\n].*?={2,6})[ \t]*$", markup, flags=re.MULTILINE)
    kept = [pieces[0]]
    for heading, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if heading.strip("= '\t").casefold() not in LINK_LISTS:
            kept += [heading, body]
        else:
            kept.append("\n")
    return "".join(kept)


def _plain_text(code: Any) -> str:
    """Text of parsed markup."""
    return "".join(_node_text(node) for node in code.nodes) if code is not None else ""


def _node_text(node: Any) -> str:
    """Text of one node; empty for templates, arguments and comments."""
    match type(node).__name__:
        case "Text":
            text = _TAG.sub("", str(node.value))
        case "HTMLEntity":
            text = str(node.normalize())
        case "Heading":
            text = "\n" + _plain_text(node.title).strip() + "\n"
        case "Wikilink":
            text = _wikilink_text(node)
        case "ExternalLink":
            text = _plain_text(node.title)
        case "Tag":
            text = _tag_text(node)
        case _:
            text = ""
    return text


def _wikilink_text(node: Any) -> str:
    """Label of a link; empty for files, categories and other languages."""
    title = str(node.title).strip()
    prefix = _PREFIX.match(title)
    if prefix and not title.startswith(":"):
        namespace = prefix[1].strip()
        # A title may contain a colon ("2001: A Space Odyssey"), but only a namespace prefix has no space after it.
        if namespace.casefold() in {"file", "image", "category", "media"} or _LANGUAGE.fullmatch(namespace):
            return ""
    label = _plain_text(node.text) if node.text is not None else title.removeprefix(":")
    return label.rsplit("|", 1)[-1]


def _tag_text(node: Any) -> str:
    """Text inside a tag, if the tag has visible text."""
    name = str(node.tag).strip().casefold()
    if node.wiki_markup and str(node.wiki_markup) in _BULLETS:
        return _BULLETS[str(node.wiki_markup)]
    if name in DROPPED_TAGS:
        return ""
    inside = _plain_text(node.contents)
    return f"{inside}\n" if name in LINE_BREAK_TAGS else inside
