"""Detects exact and near duplicates among the texts of a stream."""

import hashlib
import re

WORDS_PER_SHINGLE = 5
JACCARD_THRESHOLD = 0.8
"""Two texts are near duplicates from this estimated Jaccard similarity of their shingles on."""
COMPARED_CHARACTERS = 4_000
"""Near duplicates are found by this prefix only: harvesting rarely reads more of a document."""
PERMUTATIONS = 64
MAX_SKETCHES = 200_000
"""MinHash sketches kept, about 1 kB each; beyond that, only exact duplicates are found."""

_WORD = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]|\w+")


class DuplicateFilter:
    """Recognises texts it has seen: exactly by hash, or nearly by MinHash over five-word shingles."""

    def __init__(self) -> None:
        from rensa import RMinHash, RMinHashLSH

        self._new_sketch = RMinHash
        self._exact: set[bytes] = set()
        self._index = RMinHashLSH(threshold=JACCARD_THRESHOLD, num_perm=PERMUTATIONS, num_bands=PERMUTATIONS // 4)
        self._sketches: list[object] = []

    def check_and_add(self, text: str) -> bool:
        """Whether this text was seen before, ignoring case, punctuation and spacing; adds it if not."""
        words = _WORD.findall(text.casefold())
        digest = hashlib.blake2b(" ".join(words or [text]).encode(), digest_size=12).digest()
        if digest in self._exact:
            return True
        if self._is_near_duplicate(_WORD.findall(text[:COMPARED_CHARACTERS].casefold())):
            return True
        self._exact.add(digest)
        return False

    def _is_near_duplicate(self, words: list[str]) -> bool:
        shingles = [" ".join(words[i : i + WORDS_PER_SHINGLE]) for i in range(len(words) - WORDS_PER_SHINGLE + 1)]
        if len(shingles) < WORDS_PER_SHINGLE:
            return False  # too short for shingles to be reliable
        sketch = self._new_sketch(PERMUTATIONS, 1)
        sketch.update(shingles)
        if any(sketch.jaccard(self._sketches[key]) >= JACCARD_THRESHOLD for key in self._index.query(sketch)):
            return True
        if len(self._sketches) < MAX_SKETCHES:
            self._index.insert(len(self._sketches), sketch)
            self._sketches.append(sketch)
        return False
