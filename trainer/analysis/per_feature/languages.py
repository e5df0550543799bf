"""Detects the main language of every harvested sequence."""

import numpy as np

from trainer.analysis.rows.texts import Texts
from trainer.corpus.language import INSPECTED_CHARACTERS, detect_language

BYTES = 8 * INSPECTED_CHARACTERS
"""Bytes of a sequence passed to the detector: more than it reads, in any script."""


def languages(texts: Texts) -> tuple[np.ndarray, tuple[str, ...]]:
    """Index of each sequence's language, int64 [Q], and the languages' ISO 639 codes."""
    detected = np.array([_language_of(texts, sequence) for sequence in range(texts.sequences)], str)
    codes, index = np.unique(detected, return_inverse=True)
    return index, tuple(codes.tolist())


def _language_of(texts: Texts, sequence: int) -> str:
    first, stop = (int(edge) for edge in texts.text_start[sequence : sequence + 2])
    return detect_language(texts.data[first : min(stop, first + BYTES)].tobytes().decode(errors="ignore"))
