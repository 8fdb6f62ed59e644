"""Damaged files on the command line: one line on stderr, by geograft, and none by GDAL, libtiff, GEOS or numpy."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from geograft.cli import main
from geograft.commands.audit import audit
from geograft.errors import InputError
from tests.support.rasters import textured, write_raster


def cut(path: Path) -> None:
    """Remove the last third of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def corrupt(path: Path) -> None:
    """Overwrite the middle third of a file."""
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = b"\x55" * third
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, corrupt])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("scene.tif", {"compress": "deflate"}),
        ("scene.tif", {"compress": "lzw"}),
        ("scene.tif", {"compress": "jpeg"}),
        ("fields.gpkg", {}),
    ],
)
def test_damaged_inputs_print_one_line(
    tmp_path: Path,
    fields: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    options: dict[str, str],
    damage: Callable[[Path], None],
) -> None:
    shutil.copytree(fields, tmp_path / "in")
    if options:
        write_raster(tmp_path / "in" / name, textured(3, 256, 256), **options)
    damage(tmp_path / "in" / name)
    scene, labels = (str(tmp_path / "in" / file) for file in ("scene.tif", "fields.gpkg"))
    arguments = ["prepare", "vector", scene, "--labels", labels, "--out", str(tmp_path / "tiles"), "--tile-px", "32"]
    with warnings.catch_warnings(), pytest.raises(SystemExit) as caught:
        warnings.simplefilter("error")
        main(arguments)
    assert str(caught.value).startswith("geograft: ")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # the interpreter prints the line of SystemExit
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_unclosed_ring_prints_nothing_but_the_result(
    tmp_path: Path, fields: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    west, north = 528000.0, 4979000.0
    ring = [[west + 3, north - 3], [west + 20, north - 3], [west + 20, north - 20]]
    layer = {"type": "Polygon", "coordinates": [ring], "crs": {"type": "name", "properties": {"name": "EPSG:32612"}}}
    (tmp_path / "a.geojson").write_text(json.dumps(layer))
    arguments = ["prepare", "vector", str(fields / "scene.tif"), "--labels", str(tmp_path / "a.geojson")]
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("error")
        main([*arguments, "--out", str(tmp_path / "tiles"), "--tile-px", "32", "--block-px", "64", "--buffer-px", "0"])
    assert ended.value.code == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "1 of them repaired" in printed.out


def test_audit_finds_a_truncated_mask(tmp_path: Path, tiles: Path) -> None:
    shutil.copytree(tiles, tmp_path / "tiles")
    mask = tmp_path / "tiles" / "masks" / "scene.tif"
    mask.write_bytes(mask.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"masks/scene\.tif"):
        audit(tmp_path / "tiles")


def test_numbers_beyond_float32_print_nothing(tmp_path: Path, fields: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_raster(tmp_path / "a.tif", textured(3, 256, 256).astype(np.float64) * 1e300)
    arguments = ["prepare", "vector", str(tmp_path / "a.tif"), "--labels", str(fields / "fields.gpkg")]
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        warnings.simplefilter("error")
        main([*arguments, "--out", str(tmp_path / "tiles"), "--tile-px", "32"])
    assert capfd.readouterr().err == ""
