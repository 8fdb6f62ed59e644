"""The command line bounds GDAL's block cache in every thread, unless the user does; truncated pictures are errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as Picture
from rasterio._env import get_gdal_config

from geograft.cli import GDAL_OPTIONS
from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.gdal import STRICT_DECODING, strict_decoding
from geograft.geo.rasters.raster import Image
from tests.support.rasters import textured

PRINT_CACHE_SIZE = """
import contextlib
from concurrent.futures import ThreadPoolExecutor
from geograft.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):
    main(["--version"])
import rasterio
from rasterio._env import get_gdal_config
import geograft.geo.rasters.gdal
with ThreadPoolExecutor(1) as thread, rasterio.Env():
    print(thread.submit(get_gdal_config, "GDAL_CACHEMAX").result(), get_gdal_config("GDAL_CACHEMAX"))
"""


@pytest.mark.parametrize(("own", "expected"), [(None, int(GDAL_OPTIONS["GDAL_CACHEMAX"])), ("50", 50)])
def test_command_line_bounds_block_cache_in_every_thread(own: str | None, expected: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GDAL_CACHEMAX"}
    environment |= {"GDAL_CACHEMAX": own} if own else {}
    run = subprocess.run(
        [sys.executable, "-c", PRINT_CACHE_SIZE], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.split() == [str(expected * 2**20)] * 2


def test_strict_decoding_is_local_and_yields_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(STRICT_DECODING)
    before = [get_gdal_config(name) for name in names]
    with strict_decoding():
        assert [get_gdal_config(name) for name in names] == list(STRICT_DECODING.values())
    assert [get_gdal_config(name) for name in names] == before
    monkeypatch.setenv(names[0], "FALSE")
    with strict_decoding():
        assert get_gdal_config(names[0]) in (False, "FALSE")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_picture_in_a_vrt_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    Picture.fromarray(textured(1, 400, 400)[0]).save(path)
    path.write_bytes(path.read_bytes()[:20000])
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="400" rasterYSize="400"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{path.name}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    with Image.open(tmp_path / "a.vrt") as image, pytest.raises(InputError, match=r"a\.vrt"):
        image.read(Window(0, 0, 400, 400))
