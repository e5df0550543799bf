"""Wikitext: the markup of MediaWiki, turned into plain encyclopaedia text.

The parser is a library; what each node reads like is decided here, because the library's own
rendering keeps captions, categories and links to other languages.
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
"""Sections that hold links and no sentences."""
SILENT_TAGS = {
    *("ref", "references", "math", "chem", "table", "tr", "td", "th", "gallery", "timeline", "imagemap"),
    *("source", "syntaxhighlight", "score", "hiero", "style", "script", "hr"),
}
MOST_UNCLOSED = 300
"""A page that opens so many more tags, tables or templates than it closes costs the parser minutes; it is no page."""
BREAKING_TAGS = {"br", "p", "div", "center", "blockquote"}

_BULLETS = {"*": "- ", "#": "- ", ":": "", ";": ""}
_PREFIX = re.compile(r"^\s*:?([^\[\]|:]{2,40}):")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]{2,12})*|simple")
_PAIRS = [
    (re.compile(r"<(?!br\b)[a-zA-Z]"), re.compile(r"</|/>")),
    (re.compile(r"\{\|"), re.compile(r"\|\}")),
    (re.compile(r"\{\{"), re.compile(r"\}\}")),
    (re.compile(r"\[\[?"), re.compile(r"\]\]?")),
]
# In text that the parser took for text: an escaped tag is meant to be read, and is no text node.
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,200}>")
_HATNOTE = (
    r"^(?:- )?(?:Main articles?:|See also:|This article is about|For [^\n]{1,120}\bsee\b|Alternat(?:e|ive) meanings?:)"
    r"[^\n]{0,200}$"
)
_LEFT_OVER = [
    (re.compile(r"^\s*(?:\{\||\|\}|\|-|!|\|).*$", re.MULTILINE), ""),
    (re.compile(r"__[A-Z]{3,20}__"), ""),
    (re.compile(r"'{2,5}"), ""),
    (re.compile(r"\[\[|\]\]|\{\{|\}\}"), ""),
    (re.compile(r"[ \t\xa0]+"), " "),
    (re.compile(r" ?(?:\([ ,;:]*\)|\[ ?\])"), ""),
    (re.compile(r" +([,.;:)])(?=\s|$)"), r"\1"),
    (re.compile(r",{2,}"), ","),
    (re.compile(r"^(?:- ?){2,}", re.MULTILINE), "- "),
    (re.compile(_HATNOTE, re.MULTILINE), ""),
    (re.compile(r"\( +"), "("),
    (re.compile(r"^[ \t]+|[ \t]+$", re.MULTILINE), ""),
    (re.compile(r"^[-–—*#:;,.|!=\s]+$", re.MULTILINE), ""),
    (re.compile(r"\n{3,}"), "\n\n"),
]


def strip_wikitext(markup: str) -> str:
    """Plain text of a page: without templates, tables, references, files, categories and link lists.

    Links, emphasis and headings leave their text; a bullet leaves `- `. About 3 MB of markup a second.
    Nothing is left of markup that is hopelessly broken.
    """
    import mwparserfromhell

    if any(len(opening.findall(markup)) - len(closing.findall(markup)) > MOST_UNCLOSED for opening, closing in _PAIRS):
        return ""
    text = _plain(mwparserfromhell.parse(_without_link_lists(markup), skip_style_tags=True))
    for pattern, replacement in _LEFT_OVER:
        text = pattern.sub(replacement, text)
    return text.strip()


def _without_link_lists(markup: str) -> str:
    """The markup up to each section of links, and from the next section on."""
    pieces = re.split(r"^(={2,6}[^=\n].*?={2,6})[ \t]*$", markup, flags=re.MULTILINE)
    kept = [pieces[0]]
    for heading, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if heading.strip("= '\t").casefold() not in LINK_LISTS:
            kept += [heading, body]
        else:
            kept.append("\n")
    return "".join(kept)


def _plain(code: Any) -> str:
    """Text of a piece of parsed markup."""
    return "".join(_node(node) for node in code.nodes) if code is not None else ""


def _node(node: Any) -> str:
    """Text of one node; templates, arguments and comments have none."""
    match type(node).__name__:
        case "Text":
            text = _TAG.sub("", str(node.value))
        case "HTMLEntity":
            text = str(node.normalize())
        case "Heading":
            text = "\n" + _plain(node.title).strip() + "\n"
        case "Wikilink":
            text = _wikilink(node)
        case "ExternalLink":
            text = _plain(node.title)
        case "Tag":
            text = _tag(node)
        case _:
            text = ""
    return text


def _wikilink(node: Any) -> str:
    """What a link shows; nothing for files, categories and other languages."""
    title = str(node.title).strip()
    prefix = _PREFIX.match(title)
    if prefix and not title.startswith(":"):
        space = prefix[1].strip()
        # An article may have a colon in its name ("2001: A Space Odyssey"): a namespace has no blank after it.
        if space.casefold() in {"file", "image", "category", "media"} or _LANGUAGE.fullmatch(space):
            return ""
    shown = _plain(node.text) if node.text is not None else title.removeprefix(":")
    return shown.rsplit("|", 1)[-1]


def _tag(node: Any) -> str:
    """Text inside a tag, if it is meant to be read."""
    name = str(node.tag).strip().casefold()
    if node.wiki_markup and str(node.wiki_markup) in _BULLETS:
        return _BULLETS[str(node.wiki_markup)]
    if name in SILENT_TAGS:
        return ""
    inside = _plain(node.contents)
    return f"{inside}\n" if name in BREAKING_TAGS else inside
