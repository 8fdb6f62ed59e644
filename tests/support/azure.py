"""An Azure Blob Storage server on loopback for tests: azurite, where npm has installed it.

npm install --prefix FOLDER azurite && PATH=$PATH:FOLDER/node_modules/.bin make test
"""

import base64
import hashlib
import hmac
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate

import pytest

CONTAINER = "maps"
ACCOUNT, KEY = "worker", base64.b64encode(b"never-to-be-seen").decode()


@contextmanager
def serve_azure(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve an empty container, by the variable that GDAL and Azure's tools read, until the end of the block."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite is not installed (npm install azurite), or not on the PATH")
    options = ["--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with subprocess.Popen(
        [program, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            listening = next(line for line in server.stdout if "listens" in line)
            url = f"{re.findall(r'http://[0-9.:]+', listening)[0]}/{ACCOUNT}"
            _create_container(url)
            parts = {"AccountName": ACCOUNT, "AccountKey": KEY, "BlobEndpoint": url, "DefaultEndpointsProtocol": "http"}
            for name in ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_TOKEN"):
                patch.delenv(name, raising=False)
            patch.setenv("AZURE_STORAGE_CONNECTION_STRING", ";".join(f"{name}={text}" for name, text in parts.items()))
            yield f"az://{CONTAINER}"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def az_container() -> Iterator[str]:
    """The address of an empty container."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    with pytest.MonkeyPatch.context() as patch, serve_azure(patch) as address:
        yield address


def _create_container(url: str) -> None:
    """Create the container, which obstore cannot, by a request signed with the shared key."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "".join(f"{name}:{value}\n" for name, value in headers.items())
    # https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
    text = f"PUT{12 * chr(10)}{signed}/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    digest = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    request = urllib.request.Request(f"{url}/{CONTAINER}?restype=container", method="PUT", headers=headers)
    with urllib.request.urlopen(request, timeout=10):
        pass
