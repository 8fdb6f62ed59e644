"""What can go wrong through no fault of the program.

* GeograftError
  + InputError      an image, a label file or a tile set cannot be used as it is
    - DivergedError  the loss of a training became infinite or no number
  + SettingError    a recipe, a flag or an argument has a value that cannot work
  + WeightsError    pretrained weights cannot be had, read or fitted to the network
  + OutputError     a result cannot be written (disk full, no permission, exists already)

Every message is one line in three parts: what was seen, what is needed, what to do. The command line prints the line
and exits with 1. Mistakes of the program itself raise the usual Python exceptions with their traceback.
"""


class GeograftError(Exception):
    """The root of all errors that a user can mend."""


class InputError(GeograftError):
    """An image, a label file, a tile set or a run cannot be used as it is."""


class DivergedError(InputError):
    """The loss of a training became infinite or no number: by a tile, or by rates that are too high."""


class SettingError(GeograftError):
    """A recipe, a flag or an argument has a value that cannot work."""


class WeightsError(GeograftError):
    """Pretrained weights cannot be had, read or fitted to the network."""


class OutputError(GeograftError):
    """A result cannot be written."""
