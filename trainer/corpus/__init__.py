"""Corpus: the text every source reads, as one deterministic stream of documents."""

from trainer.corpus.document import Document, Message, Span
from trainer.corpus.language import detect_language
from trainer.corpus.mix import Documents, documents, part_names
from trainer.corpus.rendering import HeaderMark, Piece, RenderedChat, render_chat
from trainer.corpus.tally import PartTally

__all__ = [
    "Document",
    "Documents",
    "HeaderMark",
    "Message",
    "PartTally",
    "Piece",
    "RenderedChat",
    "Span",
    "detect_language",
    "documents",
    "part_names",
    "render_chat",
]
