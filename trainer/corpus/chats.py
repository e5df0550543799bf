"""Parses conversations from the JSON layouts that chat datasets use."""

import json
from collections.abc import Mapping
from typing import Any

from trainer.corpus.document import Message, Role, clean

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Names of the three roles in chat datasets, in lower case."""
CHAT_COLUMNS = ("messages", "conversations", "conversation", "chat", "dialogue")
"""Columns searched for the turns when the recipe names none."""

TOOL_ROLES = frozenset(
    ("tool", "tools", "function", "function_call", "function_response", "tool_call", "tool_response")
)
"""Names of roles of tools, in lower case."""
TOOL_KEYS = ("tool_calls", "function_call")
"""Keys of a turn that calls tools."""

_STRIPPED = " \t\r\n\f\v\xa0\u200b\u200c\u200d\u2060\ufeff"


def parse_chat(value: Any) -> tuple[Message, ...] | None:
    """Parse the turns of a chat from a list of `role`/`content` or `from`/`value` mappings, or from JSON text of one.

    Drops empty turns. Returns None if the value is not a chat, or if a turn has a role that chat templates do not
    support (tools, functions): without such a turn, the next one would answer something that is missing.
    """
    if isinstance(value, str):
        value = _parse_json(value)
    if not isinstance(value, list):
        return None
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping):
            return None
        role, content = ROLES.get(_role_name(turn)), _turn_text(turn)
        if role is None or content is None or _uses_tools(turn):
            return None
        # Templates strip contents. Stripped here, they are the same characters in every rendering.
        stripped = clean(content).strip(_STRIPPED)
        if stripped:
            messages.append(Message(role, stripped))
    return tuple(messages) if any(message.role != "system" for message in messages) else None


def truncate_chat(messages: tuple[Message, ...], characters: int) -> tuple[Message, ...]:
    """The first turns of a chat with at most `characters` characters of content; the last one may be cut."""
    kept = []
    for message in messages:
        content = message.content[:characters].rstrip(_STRIPPED)
        if not content:
            break
        kept.append(Message(message.role, content))
        characters -= len(message.content)
        if characters <= 0:
            break
    return tuple(kept)


def has_tool_turns(value: Any) -> bool:
    """Whether a value that `parse_chat` gives None for is a chat with a turn of a tool or one that calls it."""
    turns = _parse_json(value) if isinstance(value, str) else value
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and _uses_tools(turn) for turn in turns)


def _uses_tools(turn: Mapping[str, Any]) -> bool:
    return _role_name(turn) in TOOL_ROLES or any(turn.get(key) for key in TOOL_KEYS)


def _role_name(turn: Mapping[str, Any]) -> str:
    """A turn's role in lower case, as the data set names it; empty if it has none."""
    return str(turn.get("role") or turn.get("from") or "").strip().casefold()


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _turn_text(turn: Mapping[str, Any]) -> str | None:
    """Text of one turn; a content that is a list of parts gives its text parts, joined by line breaks."""
    contents = [turn[key] for key in ("content", "value", "text") if key in turn]
    if not contents:
        return None
    # Where turns of two layouts share one table, the keys of the other layout are null.
    content = next((content for content in contents if content is not None), "")
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else None
