"""Chats of every layout are read, and those with turns of tools are called that."""

import json
import random

import pytest

from trainer.corpus.chats import has_tool_turns, parse_chat
from trainer.corpus.document import Message
from trainer.corpus.origins import read_documents
from trainer.corpus.tally import PartTally
from trainer.errors import CorpusError
from trainer.recipe.fitting import CorpusPart

PLAIN = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "search"}}]}
TOOL_CHATS = [
    [*PLAIN, {"role": "tool", "content": "42"}],
    [*PLAIN, {"from": "function_response", "value": "42"}],
    [PLAIN[0], CALL, PLAIN[1]],
    [PLAIN[0], {"role": "assistant", "content": "wait", "function_call": {"name": "f"}}],
]


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}],
        [
            {"from": "human", "value": "hello", "role": None, "content": None},
            {"from": None, "value": None, "role": "assistant", "content": "good day"},
        ],
        [{**turn, "from": None, "value": None, "tool_calls": None} for turn in PLAIN],
        [{"role": "user", "content": None, "text": "hello"}, {"content": None, "from": "bot", "value": "good day"}],
        [{"role": "user", "content": [{"type": "text", "text": "hello"}]}, {**PLAIN[1], "tool_calls": []}],
    ],
)
def test_layouts_that_share_a_table_are_read_though_the_other_layout_is_null(turns):
    assert parse_chat(turns) == (Message("user", "hello"), Message("assistant", "good day"))
    assert not has_tool_turns(turns)


@pytest.mark.parametrize("turns", TOOL_CHATS)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_chat_with_tools_is_left_out_and_recognised(turns, as_text):
    value = json.dumps(turns) if as_text else turns

    assert parse_chat(value) is None
    assert has_tool_turns(value)


@pytest.mark.parametrize("value", [None, 3, "text", "[" * 100_000, [], [1], [{"role": "narrator", "content": "x"}], {}])
def test_what_is_no_chat_is_neither(value):
    assert parse_chat(value) is None
    assert not has_tool_turns(value)


def read(path, chats) -> tuple[int, PartTally, list[str]]:
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    notices: list[str] = []
    tally = PartTally("part", notices.append)
    part = CorpusPart.model_validate({"path": str(path), "format": "chat"})
    return len(list(read_documents(part, tally, random.Random(0)))), tally, notices


def test_a_few_chats_with_tools_are_left_out_and_told(tmp_path):
    found, tally, notices = read(tmp_path / "a.jsonl", [PLAIN] * 5 + TOOL_CHATS)

    assert found == 5
    assert notices == ["Corpus part 'part': chats with turns of tools are left out."]
    assert "4 with turns of tools" in tally.summary()


def test_mostly_chats_with_tools_are_refused_as_that(tmp_path):
    with pytest.raises(CorpusError, match=r"4 of 5 records of .*a\.jsonl are chats with turns of tools"):
        read(tmp_path / "a.jsonl", [PLAIN, *TOOL_CHATS])
