"""Finds the earlier texts of a stream that a text repeats, or shares much of its wording with."""

import hashlib
import re
from typing import Any, NamedTuple

WORDS_PER_SHINGLE = 5
JACCARD_THRESHOLD = 0.8
"""Two texts are near duplicates from this estimated Jaccard similarity of their shingles on,"""
SIMILAR_FROM = 0.5
"""and similar from this one on: texts of equal length share two thirds of their shingles then."""
COMPARED_CHARACTERS = 4_000
"""Texts are compared by this prefix only: harvesting rarely reads more of a document."""
PERMUTATIONS, BANDS = 128, 64
"""Of MinHash. Bands of two find every pair of similarity 0.5 but for one in 10⁸; the standard error of an estimated
similarity is at most 0.044."""
MAX_SKETCHES = 200_000
"""MinHash sketches kept, about 1 kB each; beyond that, only exact duplicates are found."""

_WORD = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]|\w+")


class Likeness(NamedTuple):
    """What a text has in common with earlier ones."""

    duplicate: bool
    """Whether it repeats one: exactly but for case, punctuation and spacing, or nearly."""
    group: int | None
    """Group of the text that it repeats or is most similar to; None without one."""
    digest: bytes
    sketch: Any
    """None for a text too short for shingles to be reliable."""


class TextIndex:
    """Texts of a stream with the group of each; compares by hash, and by MinHash over five-word shingles."""

    def __init__(self) -> None:
        from rensa import RMinHash, RMinHashLSH

        self._new_sketch = RMinHash
        self._exact: dict[bytes, int] = {}
        self._index = RMinHashLSH(threshold=SIMILAR_FROM, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._sketches: list[tuple[Any, int]] = []

    def compare(self, text: str) -> Likeness:
        """Compare a text with all that were added."""
        words = _WORD.findall(text.casefold())
        digest = hashlib.blake2b(" ".join(words or [text]).encode(), digest_size=12).digest()
        sketch = self._sketch(_WORD.findall(text[:COMPARED_CHARACTERS].casefold()))
        if digest in self._exact:
            return Likeness(True, self._exact[digest], digest, sketch)
        candidates = () if sketch is None else map(self._sketches.__getitem__, self._index.query(sketch))
        # Of equally similar texts the earliest group, whatever order the index gives them in.
        similarity, group = max(((sketch.jaccard(other), -group) for other, group in candidates), default=(0.0, 0))
        similar = -group if similarity >= SIMILAR_FROM else None
        return Likeness(similarity >= JACCARD_THRESHOLD, similar, digest, sketch)

    def add(self, compared: Likeness, group: int) -> None:
        """Add a text that was compared, as one of a group."""
        self._exact[compared.digest] = group
        if compared.sketch is not None and len(self._sketches) < MAX_SKETCHES:
            self._index.insert(len(self._sketches), compared.sketch)
            self._sketches.append((compared.sketch, group))

    def _sketch(self, words: list[str]) -> Any:
        shingles = [" ".join(words[i : i + WORDS_PER_SHINGLE]) for i in range(len(words) - WORDS_PER_SHINGLE + 1)]
        if len(shingles) < WORDS_PER_SHINGLE:
            return None
        sketch = self._new_sketch(PERMUTATIONS, 1)
        sketch.update(shingles)
        return sketch
