"""A Google Cloud Storage server on loopback for tests: its XML interface, over moto's S3, which has the same verbs.

What differs is translated: the header that puts an object if absent, the generation of an object, and signed tokens in
place of signed requests.
"""

import base64
import hashlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

BUCKET = "region"
EMAIL, TOKEN = "worker@example.iam.gserviceaccount.com", "token-never-to-be-seen"
SIGNED = "AWS4-HMAC-SHA256 Credential=KEY/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""What lets a request pass in moto, which does not check signatures."""
REFUSED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access denied.</Message></Error>"


class GoogleStorage:
    """A WSGI application: checks tokens, translates headers, and lets moto answer."""

    def __init__(self, moto: Callable[..., Any], public_key: Any) -> None:
        self._moto, self._public_key = moto, public_key
        self._lock = threading.Lock()
        self.asked: list[str] = []
        """Method and path of each request."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        self.asked.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if environ["PATH_INFO"] == "/token":
            return self._give_token(environ, start_response)
        if not self._is_allowed(environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [REFUSED]
        environ["HTTP_AUTHORIZATION"] = SIGNED
        if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", "") == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            etag = next((value for name, value in headers if name.lower() == "etag"), "")
            generation = str(int(hashlib.sha256(etag.encode()).hexdigest()[:12], 16))
            return start_response(status, [*headers, ("x-goog-generation", generation)], *rest)

        if environ["REQUEST_METHOD"] != "PUT":
            return self._moto(environ, start)
        # Two puts at once are one after the other in the real storage.
        with self._lock:
            return list(self._moto(environ, start))

    def _give_token(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Exchange an assertion of a service account for a token, as https://oauth2.googleapis.com/token does."""
        sent = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
        if not self._is_allowed(parse_qs(sent).get("assertion", [""])[0]):
            start_response("401 Unauthorized", [("Content-Type", "application/json")])
            return [b'{"error": "invalid_grant"}']
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}).encode()]

    def _is_allowed(self, token: str) -> bool:
        """Return whether a token was given out, or is valid and signed by the service account (RFC 7519)."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        if token == TOKEN:
            return True
        try:
            signed, _, signature = token.rpartition(".")
            self._public_key.verify(_decoded(signature), signed.encode(), PKCS1v15(), SHA256())
            claims = json.loads(_decoded(signed.partition(".")[2]))
        except (InvalidSignature, ValueError):
            return False
        return claims["iss"] == EMAIL and claims["exp"] > time.time()


@contextmanager
def serve_gs(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[str]:
    """Serve a bucket, by the variables that GDAL and Google's tools read, until the end of the block.

    The keys of the service account are in `folder`: `key.json`, and `other.json` of another account.
    """
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    from werkzeug.serving import make_server

    public_key = _write_account(folder / "key.json")
    _write_account(folder / "other.json")
    moto = server_module.DomainDispatcherApplication(server_module.create_backend_app)
    server = make_server("127.0.0.1", 0, GoogleStorage(moto, public_key), threaded=True, request_handler=_quiet())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for name in ("GS_NO_SIGN_REQUEST", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BASE_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("CPL_GS_ENDPOINT", f"{url}/")
        patch.setenv("GO2A_AUD", f"{url}/token")
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "key.json"))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/{BUCKET}", method="PUT", headers=headers), timeout=10
        ):
            pass
        yield f"gs://{BUCKET}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def gs_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bucket."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    with pytest.MonkeyPatch.context() as patch, serve_gs(patch, tmp_path_factory.mktemp("account")) as address:
        yield address


def _write_account(path: Path) -> Any:
    """Write the key of a new service account, as Google gives them out; return its public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {"type": "service_account", "client_email": EMAIL, "private_key_id": "1", "private_key": pem.decode()}
    path.write_text(json.dumps(account))
    return key.public_key()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _quiet() -> Any:
    """Return moto's request handler, which keeps names with escapes, without its log."""
    from moto.moto_server.werkzeug_app import MotoRequestHandler

    class Quiet(MotoRequestHandler):
        def log(self, *_: object) -> None:
            pass

    return Quiet
