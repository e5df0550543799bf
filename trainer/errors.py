"""Errors a person can cause: each names the thing, the fact and the remedy.

Anything else that goes wrong is ours and keeps its traceback.
"""


class CrossdiffError(Exception):
    """What a person caused, in one sentence with its remedy; the command line prints it alone."""

    exit_code = 1


class UsageError(CrossdiffError):
    """The command or the recipe was wrong before anything ran."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot be read or does not make sense."""


class PackageError(CrossdiffError):
    """A model or corpus that comes as a package could not be had."""


class SourceError(CrossdiffError):
    """A model, its tokenizer or its hookpoint cannot be used as asked."""


class CorpusError(CrossdiffError):
    """Text that cannot be found or read."""


class StoreError(CrossdiffError):
    """An activation store that is missing, incomplete or damaged."""


class CrosscoderError(CrossdiffError):
    """Saved crosscoder weights that are missing or do not fit together."""


class DiskFull(CrossdiffError):
    """No room left while writing; what was complete is still there."""


class DoesNotFit(CrossdiffError):
    """A stage that this machine has too little memory or disk for, found out before it begins."""
