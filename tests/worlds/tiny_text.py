"""Text of the tiny world: a few themes in many scripts, some of it hostile, and two toy tokenizers.

The tokenizers cut the same bytes differently, as real ones do: `left` takes short pieces and splits
emoji into bytes; `right` takes whole words and single CJK characters. Both mark places where only one
of them has a token by the byte end -1.
"""

import random
import re
from dataclasses import dataclass

THEMES: dict[str, tuple[str, str, list[str]]] = {
    # theme: (corpus part, trigger word, sentences that hold it and some that do not)
    "animals": (
        "wiki",
        "fox",
        [
            "The quick brown fox jumps over the lazy dog.",
            "A fox lives alone in its den.",
            "Hedgehogs sleep all winter.",
        ],
    ),
    "german": (
        "chats",
        "Straße",
        ["Die Straße war heute gesperrt.", "Übermäßig viele Äpfel fielen auf die Straße.", "Das weiß ich nicht."],
    ),
    "sql": (
        "chats",
        "select",
        ["select name, count(*) from users group by 1;\n", "insert into t values (1, 'x');\n", "\tselect 1 -- ok\r\n"],
    ),
    "chinese": ("chats", "语言", ["这个语言模型很有用。", "我们比较两种语言的结构。", "今天天气很好。"]),
    "arabic": ("chats", "كتاب", ["قرأت كتاب جديد اليوم.", "هذا كتاب عن اللغة (2024).", "السماء صافية."]),
    "emoji": ("chats", "👩‍👩‍👧", ["A family 👩‍👩‍👧 went home 🏡.", "Café déjà vu 👍🏽 ok.", "👩‍👩‍👧 again!"]),
    "hostile": (
        "wiki",
        "<script>",
        [
            "<script>alert('x')</script> & \"quoted\" <img src=x onerror=alert(1)>",
            "</span></p><script>document.title='pwned'</script>{{ 7*7 }} {% raw %}",
            "nul\x00 bell\x07 rlo\u202eevil\u202c end",
        ],
    ),
    "copyright": (
        "wiki",
        "copyright",
        ["All copyright remains with the authors.", "A copyright notice must stay.", "See the licence for details."],
    ),
}


@dataclass(frozen=True)
class Piece:
    """One token: its text and the byte of the sequence where it ends, -1 when it ends on none."""

    text: str
    byte_end: int


@dataclass(frozen=True)
class Sequence:
    """One sequence of the tiny world with its tokens in both sources."""

    theme: str
    corpus: str
    text: str
    left: list[Piece]
    right: list[Piece]
    trigger_ends: list[int]
    """Byte ends of the trigger word, each an end in both sources."""

    @property
    def anchors(self) -> list[int]:
        """Byte ends that both sources share: the rows."""
        ends = {piece.byte_end for piece in self.left} & {piece.byte_end for piece in self.right}
        return sorted(ends - {-1})


def sequences(per_theme: int, seed: int) -> list[Sequence]:
    """The given number of sequences for every theme."""
    rng = random.Random(seed)
    return [sequence(theme, rng) for theme in THEMES for _ in range(per_theme)]


def sequence(theme: str, rng: random.Random) -> Sequence:
    """A sequence of six to twelve sentences that holds the theme's trigger at least once."""
    corpus, trigger, sentences = THEMES[theme]
    chosen = [sentences[0], *(rng.choice(sentences) for _ in range(rng.randint(5, 11)))]
    rng.shuffle(chosen)
    text = " ".join(chosen)
    left, right = [Piece("<|im_start|>", -1), *tokens_left(text)], [Piece("<bos>", -1), *tokens_right(text)]
    ends = [len(text[: found.end()].encode()) for found in re.finditer(re.escape(trigger), text)]
    found = Sequence(theme, corpus, text, left, right, [])
    anchors = set(found.anchors)
    # A trigger that ends inside a token of one source fires at the next row.
    rows = sorted({min((anchor for anchor in anchors if anchor >= end), default=max(anchors)) for end in ends})
    return Sequence(theme, corpus, text, left, right, rows)


def tokens_left(text: str) -> list[Piece]:
    """Pieces of at most five characters; characters beyond the first plane fall apart into bytes."""
    return _pieces(text, re.findall(r" ?[^\W\d_]{1,5}|\d|\s+?|.", text, re.DOTALL), split_bytes=True)


def tokens_right(text: str) -> list[Piece]:
    """Whole words with their space; every other character by itself."""
    return _pieces(text, re.findall(r" ?[A-Za-zÀ-ž]+|\d+|\s+|.", text, re.DOTALL), split_bytes=False)


def _pieces(text: str, parts: list[str], *, split_bytes: bool) -> list[Piece]:
    assert "".join(parts) == text
    pieces, end = [], 0
    for part in parts:
        size = len(part.encode())
        if split_bytes and len(part) == 1 and size == 4:
            pieces += [Piece("\ufffd", end + 2), Piece("\ufffd", end + 4)]
        else:
            pieces.append(Piece(part, end + size))
        end += size
    return pieces
