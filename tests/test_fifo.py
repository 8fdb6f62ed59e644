"""Input files that are pipes: refused at once, where opening them would wait for another process."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from geograft.config import load_recipe
from geograft.dataset.coco import read_coco
from geograft.dataset.dstl import read_dstl_labels, read_extents
from geograft.dataset.masks import read_class_table
from geograft.dataset.scenes import scene_groups
from geograft.errors import GeograftError

READERS: dict[str, Callable[[Path], object]] = {
    "recipe": load_recipe,
    "groups": lambda path: scene_groups(path, ("a",)),
    "classes": read_class_table,
    "COCO": read_coco,
    "DSTL sizes": lambda path: read_extents(path.parent),
    "DSTL labels": lambda path: read_dstl_labels(path.parent, (5,)),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_pipe_is_refused_at_once(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for name in ("file", "grid_sizes.csv", "train_wkt_v4.csv"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(GeograftError):
        read(tmp_path / "file")
