"""Errors that the user can fix.

* GeograftError
  + InputError      an image, a label file, a tile set or a run cannot be used
    - DivergedError  the training loss became NaN or infinite
  + SettingError    a recipe, a flag or an argument has an invalid value
  + WeightsError    pretrained weights cannot be downloaded, read or loaded into the network
  + OutputError     a result cannot be written (disk full, no permission, file exists)

Every message is one line: what was found, what is expected, what to do. The command line prints it and exits with
code 1. Bugs raise ordinary Python exceptions with a traceback.
"""


class GeograftError(Exception):
    """Base class of all errors that the user can fix."""


class InputError(GeograftError):
    """An image, a label file, a tile set or a run cannot be used."""


class DivergedError(InputError):
    """The training loss became NaN or infinite, because of a tile or a learning rate that is too high."""


class SettingError(GeograftError):
    """A recipe, a flag or an argument has an invalid value."""


class WeightsError(GeograftError):
    """Pretrained weights cannot be downloaded, read or loaded into the network."""


class OutputError(GeograftError):
    """A result cannot be written."""
