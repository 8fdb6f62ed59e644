"""Errors that the user can fix.

* GeograftError
  + InputError      an image, a label file, a tile set or a run cannot be used
    - DivergedError  the training loss became NaN or infinite
    - RunChangedError  a run was trained further while it was read
    - RasterChangedError  a remote raster is another file than when it was opened first
    - ResumeError    partial results are damaged or belong to other inputs, and cannot be resumed
  + SettingError    a recipe, a flag or an argument has an invalid value
  + WeightsError    pretrained weights cannot be downloaded, read or loaded into the network
  + OutputError     a result cannot be written (disk full, no permission, file exists)
  + ProcessLostError  another process of a training in several ended or cannot be reached

Every message is one line: what was found, what is expected, what to do. The command line prints it and exits with
code 1. Bugs raise ordinary Python exceptions with a traceback.
"""


class GeograftError(Exception):
    """Base class of all errors that the user can fix."""

    def __init__(self, message: str) -> None:
        """Names of files and classes, and messages of libraries, may contain line breaks; an error is one line."""
        super().__init__(" ".join(message.split("\n")) if "\n" in message else message)


class InputError(GeograftError):
    """An image, a label file, a tile set or a run cannot be used."""


class DivergedError(InputError):
    """The training loss became NaN or infinite, because of a tile or a learning rate that is too high."""


class RunChangedError(InputError):
    """A run was trained further while it was read: its card and its weights are of two epochs."""


class RasterChangedError(InputError):
    """A remote raster is another file, by its ETag, than when it was opened first."""


class ResumeError(InputError):
    """Partial results are damaged, or belong to other inputs or settings, and cannot be resumed."""


class SettingError(GeograftError):
    """A recipe, a flag or an argument has an invalid value."""


class WeightsError(GeograftError):
    """Pretrained weights cannot be downloaded, read or loaded into the network."""


class OutputError(GeograftError):
    """A result cannot be written."""


class ProcessLostError(GeograftError):
    """Another process of a training in several ended, or cannot be reached."""


def first_line(error: Exception) -> str:
    r"""Return the first line of an error's message without its full stop, to quote: at most 160 characters.

    >>> first_line(ValueError("no such band.\nTraceback ...")), first_line(KeyError())
    ('no such band', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
