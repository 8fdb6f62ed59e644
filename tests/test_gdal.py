"""GDAL's cache of blocks is bounded in every thread, and a user's own bound stays."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from rasterio._env import get_gdal_config

from tilth.geo import gdal

ASK = """
from concurrent.futures import ThreadPoolExecutor
import rasterio
from tilth.geo.gdal import widen_cache
from rasterio._env import get_gdal_config
widen_cache({size})
with ThreadPoolExecutor(1) as thread, rasterio.Env():
    print(thread.submit(get_gdal_config, "GDAL_CACHEMAX").result(), get_gdal_config("GDAL_CACHEMAX"))
"""


@pytest.mark.parametrize(
    ("own", "size", "expected"),
    [(None, 0, 128), (None, 200 * 2**20, 200), (None, 10**12, gdal.MOST_CACHE_MB), ("50", 10**12, 50)],
)
def test_the_cache_is_bounded_in_every_thread(own: str | None, size: int, expected: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GDAL_CACHEMAX"}
    environment |= {"GDAL_CACHEMAX": own} if own else {}
    run = subprocess.run(
        [sys.executable, "-c", ASK.format(size=size)], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.split() == [str(expected * 2**20)] * 2


def test_it_never_shrinks() -> None:
    before = get_gdal_config("GDAL_CACHEMAX")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(gdal.widen_cache, 1).result()
    assert get_gdal_config("GDAL_CACHEMAX") == before
