"""Exceptions for problems that the user can fix; their messages say what is wrong and how to fix it.

Any other exception is a defect of Crossdiff and keeps its traceback.
"""


class CrossdiffError(Exception):
    """A problem that the user can fix; the command line prints the message without a traceback."""

    exit_code = 1


class UsageError(CrossdiffError):
    """The command or the recipe is wrong; nothing has run."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe cannot be read or is inconsistent."""


class PackageError(CrossdiffError):
    """A model or corpus distributed as a package cannot be downloaded or read."""


class SourceError(CrossdiffError):
    """A model, its tokenizer or its hookpoint cannot be used as the recipe asks."""


class CorpusError(CrossdiffError):
    """Text cannot be found or read."""


class StoreError(CrossdiffError):
    """An activation store is missing, incomplete or damaged."""


class RunError(CrossdiffError):
    """A file of a run is missing or damaged."""


class CrosscoderError(CrossdiffError):
    """Saved crosscoder weights are missing or inconsistent."""


class TrainingError(CrossdiffError):
    """A training diverged."""


class DiskFull(CrossdiffError):
    """The disk is full; files that were complete are kept."""


class DoesNotFit(CrossdiffError):
    """The machine has too little memory or disk for a stage; raised before the stage starts."""
