"""What goes wrong, and whose matter it is. The sentences are those of the command line."""

from __future__ import annotations


class FathomError(Exception):
    """Anything that Fathom refuses or that failed; one sentence."""


class CheckpointError(FathomError):
    """A file of a checkpoint, adapter or run cannot be used: another file is needed."""


class DataError(FathomError):
    """One row of a data set cannot be used: mend it or leave it out, the others are fine."""


class RequestError(FathomError, ValueError):
    """An argument has no meaning, or does not fit the model or the text."""


class UnsupportedError(RequestError, AttributeError, TypeError):
    """Something that Fathom does not do, such as gradients; the sentence says what to do instead."""


class BackendError(FathomError, RuntimeError):
    """The machine failed, as without memory: a shorter text, or another machine."""


class EngineError(FathomError, RuntimeError):
    """What would have done it has ended, was closed, or lives in another process."""


class FathomRemark(UserWarning):
    """Input was used, but something about it was ignored, repaired or is doubtful."""
