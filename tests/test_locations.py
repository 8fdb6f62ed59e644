"""Locations: what addresses mean, and that no text of them has credentials."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.errors import InputError
from geograft.locations import Location, redact, to_place

PLAIN = st.text("abcdefghij0123456789-_", min_size=1, max_size=12)
SECRET = st.text("KLMNOPQRSTUVWXYZ", min_size=8, max_size=12)


@pytest.mark.parametrize(
    ("given_text", "url"),
    [
        ("https://host/a/b.tif", "https://host/a/b.tif"),
        ("HTTPS://host:8080/a//b.tif?x=1&y=a//b", "https://host:8080/a//b.tif?x=1&y=a//b"),
        (Path("https://host/a/b.tif"), "https://host/a/b.tif"),
        ("/vsicurl/https://host/b.tif", "https://host/b.tif"),
        ("s3://bucket/a?b#c.tif", "s3://bucket/a?b#c.tif"),
        (Path("s3://bucket/a.tif"), "s3://bucket/a.tif"),
        ("gs://bucket/a.tif", "gs://bucket/a.tif"),
        ("az://container/a.tif", "az://container/a.tif"),
    ],
)
def test_an_address_keeps_all_of_its_parts(given_text: str | Path, url: str) -> None:
    place = to_place(given_text)
    assert isinstance(place, Location)
    assert place.url == url
    assert to_place(place) is place


@pytest.mark.parametrize("text", ["a.tif", "./https/a.tif", "/vsizip/a.zip/b.tif", "C:/a.tif", "hf:user/name", ""])
def test_other_texts_are_paths(text: str) -> None:
    assert to_place(text) == Path(text)


def test_a_file_address_is_a_path() -> None:
    assert to_place("file:///data/a%20b.tif") == Path("/data/a b.tif")


def test_names_are_those_of_a_path() -> None:
    place = to_place("https://host/folder/a%20b.tif?sig=1")
    assert isinstance(place, Location)
    assert (place.name, place.stem, place.suffix) == ("a b.tif", "a b", ".tif")
    assert place.with_name("c.tif").url == "https://host/folder/c.tif?sig=1"
    assert (Location("s3", "bucket", "") / "a" / "b").url == "s3://bucket/a/b"


@pytest.mark.parametrize(
    "text", ["https://", "https:///a.tif", "s3:///a.tif", "https://host:port/a", "s3://b/../c", "https://[::1/a.tif"]
)
def test_an_address_without_a_host_or_with_a_way_up_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        to_place(text)


@given(PLAIN, SECRET, SECRET, PLAIN, SECRET)
def test_no_text_has_credentials(host: str, user: str, word: str, name: str, signature: str) -> None:
    url = f"https://{user}:{word}@{host}/{name}.tif?X-Amz-Signature={signature}"
    place = to_place(url)
    shown = f"{place} {place!r} {redact(f'GET {url}: refused')} {redact(f'/vsicurl/{url}')} {place.as_posix()}"
    assert not any(secret in shown for secret in (user, word, signature))
    assert f"{host}/{name}.tif" in str(place)
