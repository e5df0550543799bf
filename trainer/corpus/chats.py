"""Chats: turns of a conversation, out of the ways in which files write them down."""

import json
from collections.abc import Mapping
from typing import Any

from trainer.corpus.document import Message, Role, clean

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "bing", "bard", "claude"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""What files call the three roles, in lower case."""
CHAT_COLUMNS = ("messages", "conversations", "conversation", "chat", "dialogue")
"""Where a record keeps its turns when the recipe does not say."""

_EDGES = " \t\r\n\f\v\xa0\u200b\u200c\u200d\u2060\ufeff"


def read_chat(value: Any) -> tuple[Message, ...] | None:
    """The turns of a chat, from `role`/`content` or `from`/`value` mappings or JSON text of them.

    Empty turns are dropped. None when this is no chat, or when a turn has a role that no chat template
    knows (tools, functions): leaving out such a turn would leave out what the next one answers.
    """
    if isinstance(value, str):
        value = _decoded(value)
    if not isinstance(value, list):
        return None
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping):
            return None
        role = ROLES.get(str(turn.get("role") or turn.get("from") or "").strip().casefold())
        content = _content(turn)
        if role is None or content is None:
            return None
        # Templates strip contents; done here, every template leaves the same characters.
        stripped = clean(content).strip(_EDGES)
        if stripped:
            messages.append(Message(role, stripped))
    return tuple(messages) if any(message.role != "system" for message in messages) else None


def shortened(messages: tuple[Message, ...], characters: int) -> tuple[Message, ...]:
    """The first turns of a chat, the last one cut, so that the contents hold at most `characters`."""
    kept = []
    for message in messages:
        content = message.content[:characters].rstrip(_EDGES)
        if not content:
            break
        kept.append(Message(message.role, content))
        characters -= len(message.content)
        if characters <= 0:
            break
    return tuple(kept)


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _content(turn: Mapping[str, Any]) -> str | None:
    """Text of one turn; of a list of parts, its text parts."""
    for key in ("content", "value", "text"):
        if key in turn:
            content = turn[key]
            if isinstance(content, list):
                return "\n".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
            return content if isinstance(content, str) else "" if content is None else None
    return None
