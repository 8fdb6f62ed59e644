"""GDAL's cache of blocks is bounded in every thread, and a user's own bound stays."""

import os
import subprocess
import sys

import pytest

from geograft.geo.rasters.gdal import CACHE_MB

ASK = """
from concurrent.futures import ThreadPoolExecutor
import rasterio
from rasterio._env import get_gdal_config
{before}
import geograft.geo.rasters.gdal
with ThreadPoolExecutor(1) as thread, rasterio.Env():
    print(thread.submit(get_gdal_config, "GDAL_CACHEMAX").result(), get_gdal_config("GDAL_CACHEMAX"))
"""


USED_BEFORE = "assert get_gdal_config('GDAL_CACHEMAX') != 50 * 2**20"


@pytest.mark.parametrize(
    ("own", "before", "expected"), [(None, "", CACHE_MB), (None, USED_BEFORE, CACHE_MB), ("50", "", 50)]
)
def test_the_cache_is_bounded_in_every_thread(own: str | None, before: str, expected: int) -> None:
    """Also where GDAL was used before, and so has read its options already."""
    environment = {name: value for name, value in os.environ.items() if name != "GDAL_CACHEMAX"}
    environment |= {"GDAL_CACHEMAX": own} if own else {}
    command = [sys.executable, "-c", ASK.format(before=before)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == [str(expected * 2**20)] * 2
