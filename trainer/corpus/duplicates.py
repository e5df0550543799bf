"""Duplicates: texts that say again what the stream has already said."""

import hashlib
import re

WORDS_PER_SHINGLE = 5
ALIKE = 0.8
"""Share of common shingles (Jaccard, estimated) above which two texts count as the same."""
READ_CHARACTERS = 4_000
"""Only the beginning is compared: harvesting rarely takes more of a document."""
PERMUTATIONS = 64
REMEMBERED = 200_000
"""Sketches kept for near duplicates, about 1 kB each; exact duplicates are found beyond."""

_WORD = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]|\w+")


class Duplicates:
    """Remembers texts and recognises them: exactly, or nearly by MinHash over five-word shingles."""

    def __init__(self) -> None:
        from rensa import RMinHash, RMinHashLSH

        self._sketch_of = RMinHash
        self._exact: set[bytes] = set()
        self._near = RMinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS, num_bands=PERMUTATIONS // 4)
        self._sketches: list[object] = []

    def seen(self, text: str) -> bool:
        """Whether this text, but for case, punctuation and spacing, came before; remembers it if not."""
        words = _WORD.findall(text.casefold())
        digest = hashlib.blake2b(" ".join(words or [text]).encode(), digest_size=12).digest()
        if digest in self._exact:
            return True
        if self._nearly(_WORD.findall(text[:READ_CHARACTERS].casefold())):
            return True
        self._exact.add(digest)
        return False

    def _nearly(self, words: list[str]) -> bool:
        shingles = [" ".join(words[at : at + WORDS_PER_SHINGLE]) for at in range(len(words) - WORDS_PER_SHINGLE + 1)]
        if len(shingles) < WORDS_PER_SHINGLE:
            return False  # too short to be told apart by shingles
        sketch = self._sketch_of(PERMUTATIONS, 1)
        sketch.update(shingles)
        if any(sketch.jaccard(self._sketches[key]) >= ALIKE for key in self._near.query(sketch)):
            return True
        if len(self._sketches) < REMEMBERED:
            self._near.insert(len(self._sketches), sketch)
            self._sketches.append(sketch)
        return False
