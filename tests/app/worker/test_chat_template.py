"""Chat templates are programs of strangers: whatever they do, the worker says so and goes on."""

import time
from pathlib import Path

import pytest

from app.worker import chat_template
from app.worker.chat_template import TemplateRenderer
from tests.worlds.tiny_models import CHAT_TEMPLATE, byte_level_bpe
from trainer.errors import SourceError

PROMPT = "the dog"


@pytest.fixture(scope="module")
def renderer() -> TemplateRenderer:
    """One process for all tests here, as in a worker."""
    return TemplateRenderer()


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{% endfor %}{{ eos_token if tools }}",
        "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 1 %}{{ m['content'] }}{% endfor %}\n",
        "{{ messages | tojson }}{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
        "a\u2028{{ messages[0].content }}\u0085\r\n",
    ],
)
def test_it_writes_what_the_library_writes(renderer: TemplateRenderer, template: str):
    tokenizer = byte_level_bpe()
    turns = [{"role": "user", "content": "  Ünïcode\n{{ 1 }} "}]
    expected = tokenizer.apply_chat_template(turns, chat_template=template, add_generation_prompt=True, tokenize=False)
    assert renderer.render("one", template, tokenizer.special_tokens_map, turns[0]["content"]) == expected


@pytest.mark.parametrize(
    ("template", "fact"),
    [
        ("{{ raise_exception('Only system turns.\nNo others') }}", r"rendered \(TemplateError: Only system turns\)"),
        ("{% for m in messages %}", r"rendered \(TemplateSyntaxError: Unexpected end of template"),
        ("{{ messages[0].content.parts.text }}", r"rendered \(UndefinedError: "),
        ("{{ 1 // 0 }}", r"rendered \(ZeroDivisionError: "),
        ("{{ ''.__class__.__mro__ }}", r"rendered \(SecurityError: "),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", r"rendered \(RecursionError: "),
        ("{{ 'x' * 10 ** 11 }}", r"rendered \(MemoryError: "),
        ("{% if false %}{{ messages }}{% endif %}", "gives no text"),
        (" \n", "gives no text"),
        ("{{ 'x' * 200000 }}", "makes 200,000 characters of a prompt of 7"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(renderer: TemplateRenderer, template: str, fact: str):
    with pytest.raises(SourceError, match=rf"^one: the model's chat template .*{fact}.*\. Turn the chat template off"):
        renderer.render("one", template, {}, PROMPT)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(a=['x']) %}{% for a in range(99) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    ],
    ids=["loops", "a number", "a list"],
)
def test_an_endless_template_is_given_up_and_the_next_is_rendered(
    renderer: TemplateRenderer, template: str, monkeypatch: pytest.MonkeyPatch
):
    assert renderer.render("one", CHAT_TEMPLATE, {}, PROMPT)
    monkeypatch.setattr(chat_template, "TIME_LIMIT", 1.5)
    began, process = time.monotonic(), renderer._process
    with pytest.raises(SourceError, match=r"one: the model's chat template (takes too long|cannot be rendered \(Mem)"):
        renderer.render("one", template, {}, PROMPT)
    assert time.monotonic() - began < 5
    monkeypatch.undo()
    assert PROMPT in renderer.render("one", CHAT_TEMPLATE, {}, PROMPT)
    assert process is not None
    assert process is renderer._process or not Path(f"/proc/{process.pid}").exists()
