"""Stripping of MediaWiki markup, and reading of the articles in an export."""

import io

import pytest

from trainer.corpus import wikitext
from trainer.corpus.dump import read_articles
from trainer.corpus.wikitext import strip_wikitext


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("'''Albedo''' is ''white''.", "Albedo is white."),
        ("A [[planet]] and [[Star (object)|stars]].", "A planet and stars."),
        ("Before {{Infobox | name = {{nested}} }}after.", "Before after."),
        ("One.<ref name=a>A book.</ref> Two.<ref name=b/>", "One. Two."),
        ("See [http://example.org the site] or [http://example.org].", "See the site or."),
        ("[[Image:A.jpg|thumb|A [[cat]] asleep]]Text.", "Text."),
        ("Text.\n\n[[Category:Cats]]\n[[de:Katze]]\n[[zh-min-nan:Niau]]", "Text."),
        ("About [[:Category:Cats]].", "About Category:Cats."),
        ("[[2001: A Space Odyssey]] is long.", "2001: A Space Odyssey is long."),
        ("== History ==\nLong ago.", "History\n\nLong ago."),
        ("A&nbsp;&ndash;&nbsp;B &lt;br&gt;", "A – B <br>"),
        ("{|\n! a\n|-\n| b || c\n|}\nAfter.", "After."),
        ("* one\n* two\n** three", "- one\n- two\n- three"),
        ("Seen ({{lang|x}}; ) here<!-- not -->.", "Seen here."),
        ("x<sup>2</sup><br>y", "x2\ny"),
        ("Sum <math>\\sum_i i</math>.", "Sum."),
        ("An <unclosed>tag", "An tag"),
        ("__NOTOC__\nText.", "Text."),
        ("Text.\n== See also ==\n* [[Other]]\n== Uses ==\nMany.", "Text.\n\nUses\n\nMany."),
        (":''Main article: [[History of Rome]]''\nRome fell.", "Rome fell."),
    ],
)
def test_markup_is_stripped_to_the_visible_text(markup: str, plain: str) -> None:
    assert strip_wikitext(markup) == plain


@pytest.mark.parametrize("opening", ["<b>", "{|\n", "{{a|", "[[a|"])
def test_markup_with_too_many_unclosed_tags_gives_no_text(opening: str) -> None:
    assert strip_wikitext(opening * (wikitext.MAX_UNCLOSED + 1) + "text") == ""


EXPORT = """<mediawiki>
  <siteinfo><namespaces>
      <namespace key="0" />
      <namespace key="10">Template</namespace>
  </namespaces></siteinfo>
  <page><title>A &amp; B</title><revision><text xml:space="preserve">First &lt;b&gt;line&lt;/b&gt; &amp;amp; more

last line</text></revision></page>
  <page>
    <title>Template:Box</title>
    <text>not an article</text>
  </page>
  <page>
    <title>Old name</title>
    <text>#REDIRECT [[A]]</text>
  </page>
  <page>
    <title>2001: A Space Odyssey</title>
    <text>A film.</text>
  </page>
  <page>
    <title>Empty</title>
    <text xml:space="preserve" />
  </page>
  <page>
    <title>Cut</title>
    <text>this one never ends
"""


def test_an_export_yields_its_complete_articles_unescaped_once() -> None:
    lines = EXPORT.replace("<page><title>", "<page>\n<title>").replace("</title><revision>", "</title>\n<revision>")

    assert list(read_articles(io.StringIO(lines))) == ["First <b>line</b> &amp; more\n\nlast line", "A film."]


@pytest.mark.parametrize(
    "markup",
    [
        "\n" * 300_000 + "end",
        "\n \t" * 100_000 + "end",
        "start" + "\n\xa0" * 150_000 + "| cell",
        "word" + " \t" * 150_000 + "end",
        "( " * 100_000,
        "- " * 100_000 + "x",
        "== a" + " = " * 60_000 + "x",
        "<!--[http://a " * 20_000,
    ],
)
def test_markup_that_repeats_itself_is_read_in_linear_time(markup):
    # With patterns that read every run of white space from each of its characters this takes minutes.
    assert len(strip_wikitext(markup)) <= len(markup)


def test_an_entity_of_endless_digits_is_a_character_that_does_not_exist(tmp_path):
    page = f"<mediawiki><page><title>A</title>\n<text>x &#{'9' * 5000}; y</text></page></mediawiki>"

    assert list(read_articles(io.StringIO(page))) == ["x \ufffd y"]
