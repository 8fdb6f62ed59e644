"""Storage: the same facts of a local folder and of buckets of S3, Google and Azure."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.storage import Storage, google_settings, open_storage, s3_settings
from tests.support import azure, gs
from tests.support.azure import az_container
from tests.support.gs import gs_bucket
from tests.support.s3 import SECRET, bucket
from tests.support.web_server import WebServer, serve_web

__all__ = ["az_container", "bucket", "gs_bucket"]

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def faulty() -> Iterator[WebServer]:
    """An S3 server that answers unsigned GET requests, with faults."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    with serve_web() as server, pytest.MonkeyPatch.context() as patch:
        server.put("bucket/data/a", CONTENT)
        patch.setenv("AWS_S3_ENDPOINT", server.url)
        patch.setenv("AWS_NO_SIGN_REQUEST", "YES")
        patch.setattr("geograft.storage.FIRST_PAUSE_S", 0.001)
        yield server


@pytest.fixture(params=["folder", "bucket", "gs_bucket", "az_container"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(tmp_path / "root")
    return open_storage(f"{request.getfixturevalue(request.param)}/{tmp_path.name}")


def test_what_is_put_is_read_back(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    storage.put("a/b.bin", content)
    (tmp_path / "source").write_bytes(content[::-1])
    storage.put("a/c.bin", tmp_path / "source")
    assert storage.get("a/b.bin") == content
    assert storage.get("a/c.bin") == content[::-1]
    assert storage.get_range("a/b.bin", 250, 270) == content[250:270]
    assert storage.get_range("a/b.bin", len(content) - 3, len(content) + 3) == content[-3:]
    storage.download("a/b.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    storage.put("a/b.bin", b"other")
    assert storage.get("a/b.bin") == b"other"


def test_put_new_writes_once(storage: Storage, tmp_path: Path) -> None:
    assert storage.put_new("job.json", b"one")
    assert not storage.put_new("job.json", b"two")
    (tmp_path / "file").write_bytes(b"three")
    assert not storage.put_new("job.json", tmp_path / "file")
    assert storage.get("job.json") == b"one"
    assert storage.put_new("file", tmp_path / "file")
    assert storage.get("file") == b"three"


def test_of_many_threads_one_puts(storage: Storage) -> None:
    won: list[int] = []

    def put(number: int) -> None:
        if storage.put_new("lease", f"{number}".encode() * 1000):
            won.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.get("lease") == f"{won[0]}".encode() * 1000


def test_names_may_have_spaces_and_any_letters(storage: Storage) -> None:
    keys = ["a b/50%.bin", "a b/é+&=#?.bin"]
    for number, key in enumerate(keys):
        assert storage.put_new(key, bytes([number]))
        assert not storage.put_new(key, b"other")
    assert [one.key for one in storage.list("a b/")] == keys
    assert [storage.get(key) for key in keys] == [b"\x00", b"\x01"]


def test_large_files_are_put_in_parts_and_read_back(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(CONTENT * 2000)
    storage.put("large", tmp_path / "large")
    assert storage.get_range("large", 2**24 - 2, 2**24 + 2) == (CONTENT * 2000)[2**24 - 2 : 2**24 + 2]
    storage.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT * 2000


def test_the_etag_changes_with_the_content(storage: Storage) -> None:
    assert storage.head("a") is None
    storage.put("a", b"one")
    before = storage.head("a")
    storage.put("a", b"two!")
    after = storage.head("a")
    assert before is not None
    assert after is not None
    assert (before.size, after.size) == (3, 4)
    assert before.etag != after.etag


def test_a_listing_has_the_keys_below_a_prefix(storage: Storage) -> None:
    for key in ("units/1.json", "units/2.json", "units-old/1.json", "job.json"):
        storage.put(key, b"{}")
    assert [one.key for one in storage.list()] == ["job.json", "units-old/1.json", "units/1.json", "units/2.json"]
    assert [one.key for one in storage.list("units/")] == ["units/1.json", "units/2.json"]
    assert [one.key for one in storage.list("units")] == ["units-old/1.json", "units/1.json", "units/2.json"]
    assert storage.list("nothing/") == []
    assert {one.size for one in storage.list()} == {2}


def test_deleting_is_repeatable(storage: Storage) -> None:
    storage.put("a", b"1")
    storage.delete("a")
    storage.delete("a")
    assert storage.head("a") is None
    with pytest.raises(FileNotFoundError):
        storage.get("a")


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../b", "a//b", "./a"])
def test_a_key_that_leads_elsewhere_is_a_mistake(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        storage.put(key, b"")


@pytest.mark.parametrize(("server", "code"), [
    ("bucket", "NoSuchBucket"), ("gs_bucket", "NoSuchBucket"), ("az_container", "ContainerNotFound")
])  # fmt: skip
def test_a_missing_bucket_is_one_clear_error(server: str, code: str, request: pytest.FixtureRequest) -> None:
    scheme = request.getfixturevalue(server).partition(":")[0]
    storage = open_storage(f"{scheme}://no-such-bucket/maps")
    with pytest.raises(OutputError, match=f"{scheme}://no-such-bucket/maps/a"):
        storage.put("a", b"1")
    with pytest.raises(InputError, match=code):
        storage.list()


def test_no_message_has_keys(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_S3_ENDPOINT", "127.0.0.1:9")
    for module in ("storage", "web"):
        monkeypatch.setattr(f"geograft.{module}.ATTEMPTS", 1)
    storage = open_storage(bucket)
    for use in (lambda: storage.put("a", b"1"), storage.list, lambda: storage.get("a")):
        with pytest.raises(GeograftError) as caught:
            use()
        assert SECRET not in str(caught.value)
        assert "AKID" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["gs other account", "gs none", "az other key"])
def test_wrong_credentials_are_one_line_without_them(
    wrong: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = request.getfixturevalue({"gs": "gs_bucket", "az": "az_container"}[wrong[:2]])
    account, connection = (
        os.environ.get(name, "") for name in ("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_CONNECTION_STRING")
    )
    if wrong == "gs other account":
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(Path(account).with_name("other.json")))
    elif wrong == "gs none":
        monkeypatch.setenv("GS_NO_SIGN_REQUEST", "YES")
    else:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection.replace(azure.KEY, "b3RoZXI="))
    storage = open_storage(f"{address}/refused")
    read: list[Callable[[], object]] = [storage.list, lambda: storage.get("a"), lambda: storage.head("a")]
    write: list[Callable[[], object]] = [lambda: storage.put("a", b"1"), lambda: storage.put_new("a", b"1")]
    for use in read if wrong == "gs none" else read + write:
        with pytest.raises(GeograftError, match="403") as caught:
            use()
        said = str(caught.value)
        assert address in said
        assert "\n" not in said
        assert not any(secret in said for secret in (azure.KEY, azure.ACCOUNT, gs.TOKEN, gs.EMAIL, "Bearer", "eyJ"))


@pytest.mark.parametrize("content", [None, b"{", b'{"type": "service_account", "private_key": "never-to-be-seen"}'])
def test_a_damaged_service_account_is_one_line_without_its_key(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    if content is not None:
        (tmp_path / "key.json").write_bytes(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(SettingError, match="gs://maps") as caught:
        open_storage("gs://maps")
    assert "\n" not in str(caught.value)
    assert "never-to-be-seen" not in str(caught.value)


def test_google_is_reached_as_gdal_does() -> None:
    assert google_settings({}) == {}
    assert google_settings({"GS_NO_SIGN_REQUEST": "YES"}) == {"skip_signature": "true"}
    assert google_settings({"CPL_GS_ENDPOINT": "http://host:1/"}) == {"base_url": "http://host:1"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["", "status", "drop", "short"]), max_size=4))
def test_any_faults_before_the_last_attempt_leave_the_content(faulty: WebServer, faults: list[str]) -> None:
    storage = open_storage("s3://bucket/data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geograft.web.FIRST_PAUSE_S", 0.0)
        for read in (lambda: storage.get("a"), lambda: storage.get_range("a", 0, len(CONTENT))):
            faulty.count, faulty.fault = 0, lambda n: faults[n] if n < len(faults) else ""  # type: ignore[return-value]
            assert read() == CONTENT


def test_a_lasting_fault_is_one_clear_error(faulty: WebServer, tmp_path: Path) -> None:
    storage = open_storage("s3://bucket/data")
    for fault in ("status", "drop", "short"):
        faulty.fault = lambda _, fault=fault: fault  # type: ignore[misc]
        for read in (lambda: storage.get("a"), lambda: storage.download("a", tmp_path / "a")):
            with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="s3://bucket/data/a"):
                patch.setattr("geograft.web.FIRST_PAUSE_S", 0.0)
                read()
    assert not list(tmp_path.iterdir())


def test_s3_is_reached_as_gdal_and_the_aws_tools_do(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = ID\naws_secret_access_key = WORD\n")
    (tmp_path / "config").write_text("[profile work]\nregion = eu-north-1\n")
    files = {"AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/credentials", "AWS_CONFIG_FILE": f"{tmp_path}/config"}
    assert s3_settings(files | {"AWS_PROFILE": "work"}) == {
        "access_key_id": "ID", "secret_access_key": "WORD", "region": "eu-north-1"
    }  # fmt: skip
    assert s3_settings(files) == {}
    own = {"AWS_ACCESS_KEY_ID": "ID", "AWS_PROFILE": "work", "AWS_DEFAULT_REGION": "us-west-2"}
    assert s3_settings(files | own) == {"region": "us-west-2"}
    assert s3_settings({"AWS_S3_ENDPOINT": "host:1", "AWS_HTTPS": "NO", **files})["endpoint"] == "http://host:1"
    assert s3_settings({"AWS_ENDPOINT_URL": "https://host", **files})["endpoint"] == "https://host"
    unsigned = s3_settings(files | {"AWS_PROFILE": "work", "AWS_NO_SIGN_REQUEST": "YES"})
    assert unsigned == {"region": "eu-north-1", "skip_signature": "true"}
    (tmp_path / "credentials").write_text("[work\nsecret")
    with pytest.raises(SettingError) as caught:
        s3_settings(files)
    assert "secret" not in str(caught.value)


def test_a_local_folder_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = open_storage(tmp_path / "file")
    with pytest.raises(OutputError, match="file"):
        storage.put("a", b"1")
    assert storage.head("a") is None
