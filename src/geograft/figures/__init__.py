"""Pictures: arrays in, bytes of a picture out. Opens no file.

* colours      what every colour stands for, and the looks for light and dark paper
* sheet        the paper of the graphs, their axes, and their way to bytes
* pictures     tiles and scenes as RGB arrays: stretched, painted, shrunk, encoded
* curves       losses and scores over the epochs
* calibration  reliability, and precision over recall
* variogram    how far ground resembles itself
* samples      image, label and what each network makes of it, side by side
* graph        a network's steps as sheets that shrink and grow again
"""

from geograft.figures.curves import curves_figure, loss_figure
from geograft.figures.pictures import Sample, samples_figure, stretch_limits, stretched

__all__ = ["Sample", "curves_figure", "loss_figure", "samples_figure", "stretch_limits", "stretched"]
