"""An S3 server on loopback for tests (moto)."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BUCKET = "maps"
KEY, SECRET = "AKIDEXAMPLE", "never-to-be-seen"


@contextmanager
def serve_s3(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve an empty bucket, by the variables that GDAL and the AWS tools read, until the end of the block."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        settings = {"AWS_S3_ENDPOINT": f"{host}:{port}", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
        for name, value in (settings | keys).items():
            patch.setenv(name, value)
        _call(f"http://{host}:{port}/moto-api/reset", "POST")
        _call(f"http://{host}:{port}/{BUCKET}", "PUT")
        yield f"s3://{BUCKET}"
    finally:
        server.stop()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an empty bucket."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    with pytest.MonkeyPatch.context() as patch, serve_s3(patch) as address:
        yield address


def _call(url: str, method: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10):
        pass
