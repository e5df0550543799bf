"""Chats: their turns, their canonical text, and what a source with a template reads."""

from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from trainer.corpus.chats import read_chat, shortened
from trainer.corpus.document import Document, Message, Span, header_spans, plain_text
from trainer.corpus.rendering import render_chat

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


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, "?")), bos_token="<bos>")
    made.chat_template = template
    return made


def chat(*turns: tuple[Any, str]) -> Document:
    messages = tuple(Message(role, content) for role, content in turns)
    return Document(0, "chats", plain_text(messages), False, messages, header_spans(messages))


def test_turns_are_read_from_both_styles() -> None:
    expected = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))

    openai = [("system", "Be brief."), ("user", [{"type": "text", "text": "Hi"}]), ("assistant", "Hello\u200b\n")]
    assert read_chat([{"role": role, "content": content} for role, content in openai]) == expected
    share = [("system", "Be brief."), ("human", " Hi "), ("gpt", "Hello"), ("human", "  ")]
    assert read_chat([{"from": role, "value": content} for role, content in share]) == expected


@pytest.mark.parametrize(
    "value",
    [None, "hello", 3, [], [1], ["hi"], [{"role": "tool", "content": "x"}], [{"role": "user", "content": ""}]],
)
def test_what_is_no_chat_is_none(value: Any) -> None:
    assert read_chat(value) is None


def test_a_chat_with_a_turn_of_unknown_role_is_left_out_whole() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "{}"}]

    assert read_chat(turns) is None


def test_a_chat_is_cut_within_the_turn_that_is_too_much() -> None:
    turns = (Message("user", "12345"), Message("assistant", "678 0"), Message("user", "x"))

    assert shortened(turns, 9) == (Message("user", "12345"), Message("assistant", "678"))
    assert shortened(turns, 5) == turns[:1]


def test_the_canonical_text_names_the_speakers_and_the_spans_hold_the_names() -> None:
    document = chat(("user", "Grüße"), ("assistant", "Hi"))

    assert document.text == "User: Grüße\n\nAssistant: Hi"
    written = document.text.encode()
    assert [written[span.start : span.end] for span in document.template_spans] == [b"User: ", b"Assistant: "]
    assert document.template_spans == (Span(0, 6), Span(15, 26))


def test_without_a_template_a_chat_is_read_as_it_is() -> None:
    document = chat(("user", "Grüße"), ("assistant", "Hi"))

    plain = render_chat(document, tokenizer(None), use_template=False)

    assert (plain.text, plain.templated, plain.begins_with_bos) == (document.text, False, False)
    assert plain.pieces == ((0, 26, 0, 28),)


@pytest.mark.parametrize("template", [MARKED, STRICT])
def test_every_piece_is_the_same_text_in_both_and_every_mark_stands_between_header_and_content(template: str) -> None:
    # Contents that also occur in headers, in each other, and across scripts.
    document = chat(("user", "user"), ("assistant", "use 😀 é"), ("user", "assistant"), ("assistant", "e"))

    rendered = render_chat(document, tokenizer(template), use_template=True)

    assert rendered.templated
    assert rendered.refused is None
    written = document.text.encode()
    for piece, mark, message in zip(rendered.pieces, rendered.header_marks, document.messages or (), strict=True):
        assert rendered.text[piece.start_char : piece.end_char] == message.content
        assert written[piece.start_byte : piece.end_byte].decode() == message.content
        assert mark.end_char == piece.start_char
        assert written[: mark.end_byte].endswith(b":")
        assert mark.end_byte == piece.start_byte - 1
    assert rendered.text.startswith("<s>system\nBe kind.") == (template == MARKED)
    # "user" the content, not "user" the header
    assert rendered.text[: rendered.pieces[0].start_char].endswith("user\n" if template == MARKED else "[user] ")


def test_a_template_that_spells_the_bos_says_so() -> None:
    document = chat(("user", "Hi"), ("assistant", "Hello"))

    assert render_chat(document, tokenizer(STRICT), use_template=True).begins_with_bos
    assert not render_chat(document, tokenizer(MARKED), use_template=True).begins_with_bos


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
def test_a_template_that_refuses_a_chat_leaves_it_plain_with_the_reason(
    template: str | None, turns: list[tuple[str, str]], reason: str
) -> None:
    document = chat(*turns)

    rendered = render_chat(document, tokenizer(template), use_template=True)

    assert rendered.text == document.text
    assert not rendered.templated
    assert rendered.refused is not None
    assert reason in rendered.refused


def test_text_never_goes_through_a_template() -> None:
    document = Document(0, "prose", "User: not a chat", False)

    assert render_chat(document, tokenizer(MARKED), use_template=True).text == document.text
