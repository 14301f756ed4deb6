"""The exceptions. The class tells who can fix the problem; the message is the same sentence as on
the command line."""

from __future__ import annotations


class FathomError(Exception):
    """Base class: something was refused or failed. The message is one sentence."""


class CheckpointError(FathomError):
    """A file of a checkpoint, adapter or run cannot be used."""


class DataError(FathomError):
    """One row of a data set cannot be used; the message names it."""


class RequestError(FathomError, ValueError):
    """An argument is invalid, or does not fit the model or the text."""


class UnsupportedError(RequestError, AttributeError, TypeError):
    """Fathom cannot do this, for example gradients. The message says what to do instead."""


class BackendError(FathomError, RuntimeError):
    """The device failed, for example for lack of memory."""


class EngineError(FathomError, RuntimeError):
    """The engine was closed, has stopped, or belongs to another process."""


class FathomRemark(UserWarning):
    """Input was used, but something about it was ignored, repaired, or is doubtful."""
