"""Parsing of chats, their canonical text, and their rendering by chat templates."""

from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from trainer.corpus.chats import parse_chat, truncate_chat
from trainer.corpus.document import Document, Message, Span, canonical_chat_text, header_spans
from trainer.corpus.rendering import render_document

MARKED = (
    "{% if messages[0].role != 'system' %}<s>system\nBe kind.</s>\n{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
)
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
)
REWRITING = "{% for m in messages %}<s>{{ m.content | upper }}</s>{% endfor %}"


def tokenizer_with(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, "?")), bos_token="<bos>")
    tokenizer.chat_template = template
    return tokenizer


def chat(*turns: tuple[Any, str]) -> Document:
    messages = tuple(Message(role, content) for role, content in turns)
    return Document(0, "chats", canonical_chat_text(messages), False, 0, messages, header_spans(messages))


def test_turns_are_read_from_both_styles() -> None:
    expected = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))

    openai = [("system", "Be brief."), ("user", [{"type": "text", "text": "Hi"}]), ("assistant", "Hello\u200b\n")]
    assert parse_chat([{"role": role, "content": content} for role, content in openai]) == expected
    share = [("system", "Be brief."), ("human", " Hi "), ("gpt", "Hello"), ("human", "  ")]
    assert parse_chat([{"from": role, "value": content} for role, content in share]) == expected


@pytest.mark.parametrize(
    "value",
    [None, "hello", 3, [], [1], ["hi"], [{"role": "tool", "content": "x"}], [{"role": "user", "content": ""}]],
)
def test_a_value_that_is_not_a_chat_gives_none(value: Any) -> None:
    assert parse_chat(value) is None


def test_a_chat_with_a_turn_of_unknown_role_is_dropped() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "{}"}]

    assert parse_chat(turns) is None


def test_a_chat_is_cut_inside_the_turn_that_exceeds_the_limit() -> None:
    turns = (Message("user", "12345"), Message("assistant", "678 0"), Message("user", "x"))

    assert truncate_chat(turns, 9) == (Message("user", "12345"), Message("assistant", "678"))
    assert truncate_chat(turns, 5) == turns[:1]


def test_template_spans_cover_the_role_headers_of_the_canonical_text() -> None:
    document = chat(("user", "Grüße"), ("assistant", "Hi"))

    assert document.text == "User: Grüße\n\nAssistant: Hi"
    encoded = document.text.encode()
    assert [encoded[span.start : span.end] for span in document.template_spans] == [b"User: ", b"Assistant: "]
    assert document.template_spans == (Span(0, 6), Span(15, 26))


def test_without_a_template_a_chat_is_rendered_as_its_canonical_text() -> None:
    document = chat(("user", "Grüße"), ("assistant", "Hi"))

    plain = render_document(document, tokenizer_with(None), use_template=False)

    assert (plain.text, plain.templated, plain.begins_with_bos) == (document.text, False, False)
    assert plain.shared_spans == ((0, 26, 0, 28),)


@pytest.mark.parametrize("template", [MARKED, STRICT])
def test_shared_spans_equal_the_contents_and_header_ends_precede_them(template: str) -> None:
    # Contents that also occur in headers, in each other, and across scripts.
    document = chat(("user", "user"), ("assistant", "use 😀 é"), ("user", "assistant"), ("assistant", "e"))

    rendered = render_document(document, tokenizer_with(template), use_template=True)

    assert rendered.templated
    assert rendered.fallback_reason is None
    encoded = document.text.encode()
    for span, header_end, message in zip(
        rendered.shared_spans, rendered.header_ends, document.messages or (), strict=True
    ):
        assert rendered.text[span.start_char : span.end_char] == message.content
        assert encoded[span.start_byte : span.end_byte].decode() == message.content
        assert header_end.end_char == span.start_char
        assert encoded[: header_end.end_byte].endswith(b":")
        assert header_end.end_byte == span.start_byte - 1
    assert rendered.text.startswith("<s>system\nBe kind.") == (template == MARKED)
    # "user" the content, not "user" the header
    assert rendered.text[: rendered.shared_spans[0].start_char].endswith("user\n" if template == MARKED else "[user] ")


def test_a_rendering_records_whether_it_begins_with_the_bos() -> None:
    document = chat(("user", "Hi"), ("assistant", "Hello"))

    assert render_document(document, tokenizer_with(STRICT), use_template=True).begins_with_bos
    assert not render_document(document, tokenizer_with(MARKED), use_template=True).begins_with_bos


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [
        (STRICT, [("system", "Be kind."), ("user", "Hi")], "Roles must alternate"),
        (STRICT, [("user", "Hi"), ("user", "Hello?")], "Roles must alternate"),
        (REWRITING, [("user", "hi")], "changes the contents"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", [("user", "Hi")], "changes the contents"),
        ("{{ broken", [("user", "Hi")], "TemplateSyntaxError"),
        (None, [("user", "Hi")], "chat_template"),
    ],
)
def test_a_chat_that_a_template_rejects_is_rendered_plainly_with_the_reason(
    template: str | None, turns: list[tuple[str, str]], reason: str
) -> None:
    document = chat(*turns)

    rendered = render_document(document, tokenizer_with(template), use_template=True)

    assert rendered.text == document.text
    assert not rendered.templated
    assert rendered.fallback_reason is not None
    assert reason in rendered.fallback_reason


def test_plain_text_is_not_rendered_by_a_template() -> None:
    document = Document(0, "prose", "User: not a chat", False, 0)

    assert render_document(document, tokenizer_with(MARKED), use_template=True).text == document.text
