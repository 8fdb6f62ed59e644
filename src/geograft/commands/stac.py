"""STAC: items of runs, for `geograft export --for stac`, and items as input of `predict`, from searches and files.

The item of a run has the extension for machine-learning models (MLM) 1.5.2:

https://github.com/stac-extensions/mlm, and https://github.com/radiantearth/stac-spec 1.1.0.
"""

import json
import os
import re
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import shapely
from pyproj import CRS

from geograft.card import WEIGHTS, ModelCard
from geograft.commands.show import RANDOM, Description, own_tile_set, show
from geograft.config import StacConfig
from geograft.dataset.tileset import INDEX, TileSet
from geograft.errors import InputError, SettingError
from geograft.files import write_json
from geograft.geo.scene import RasterInput
from geograft.geo.scene_layouts import stac_scene
from geograft.geo.vectors.reader import read_outlines, reproject
from geograft.locations import Location, Place, redact, to_place
from geograft.runs import HUB, HUB_FILE, is_bundle
from geograft.storage import open_storage, storage_of
from geograft.text import join_names
from geograft.web import ATTEMPTS, FIRST_PAUSE_S, MAX_PAUSE_S, RETRIED, TIMEOUT_S, request_headers

STAC_VERSION = "1.1.0"
EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.2/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
)
WGS84 = CRS.from_epsg(4326)
COORDINATE_DIGITS = 6
"""Decimals of degrees: about 0.1 m."""
TOLERANCE_DEGREES = 1e-5
"""How far the outline of the training area may deviate: about a metre."""
ALWAYS = {"datetime": None, "start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
"""The time in which a model can be used, as the extension's best practices write "any"."""
TASK = "semantic-segmentation"
DIMENSIONS = ["batch", "bands", "height", "width"]
SEMVER = re.compile(r"\d+\.\d+\.\d+(\+[\w.-]+)?", re.ASCII)


def write_stac_item(run: Path, out: Path, tiles: Path | None = None) -> tuple[str, ...]:
    """Write a STAC item of a run as JSON: input, classes, network, and where its weights are, relative to `out`.

    Its geometry is the convex hull of the tiles that it was trained on; null if the tile set is not at hand or not
    georeferenced. `tiles` is the current path of the tile set, if it was moved.

    Returns:
        Remarks for the user, one line each.

    Raises:
        InputError: if the run cannot be read, or `tiles` is not its tile set.
        OutputError: if the file cannot be written.
    """
    description = show(run)
    tile_set = own_tile_set(run, description.card, tiles)
    area = None if tile_set is None else training_area(tile_set)
    write_json(out, stac_item(description, weights_href(run, out), area))
    note = "the item has no geometry: the tile set is not georeferenced, or was moved or changed (--tiles)."
    return () if area else (note,)


def stac_item(description: Description, href: str, area: shapely.Geometry | None) -> dict[str, Any]:
    """Return the STAC item of a run whose weights are at `href`; `area` is its training area in WGS 84."""
    card = description.card
    bands = [{"name": name, "data_type": card.dtype} for name in card.band_names]
    placed = {"bbox": [round(value, COORDINATE_DIGITS) for value in shapely.bounds(area).tolist()]} if area else {}
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": f"{_slug(card.name)}-{card.weights_digest[:12]}".strip("-"),
        "geometry": json.loads(shapely.to_geojson(area)) if area else None,
        **placed,
        "properties": ALWAYS
        | {"title": card.name, "description": f"{description.task}, with Geograft", "bands": bands}
        | _model_fields(description),
        "links": [],
        "assets": {"model": {"href": href, "title": "Weights", "bands": bands} | _asset_fields(description)},
    }


def training_area(tile_set: TileSet) -> shapely.Geometry | None:
    """Return the convex hull of the tiles in WGS 84, one for each joined tile set; None if none is georeferenced."""
    parts = [read_outlines(folder / INDEX) for folder in tile_set.folders]
    placed = [reproject(outlines, crs, WGS84) for outlines, crs in parts if crs is not None]
    if not placed:
        return None
    hulls = shapely.union_all([shapely.convex_hull(shapely.union_all(outlines)) for outlines in placed])
    return shapely.set_precision(shapely.simplify(hulls, TOLERANCE_DEGREES), 10**-COORDINATE_DIGITS)


def weights_href(run: Path, out: Path) -> str:
    """Return where the weights of a run are: relative to the item at `out`, or their address on the hub."""
    if run.as_posix().startswith(HUB):
        from huggingface_hub import hf_hub_url  # noqa: PLC0415  (slow to import)

        repository, _, revision = run.as_posix().removeprefix(HUB).partition("@")
        return str(hf_hub_url(repository, HUB_FILE, revision=revision or None))
    file = run if is_bundle(run) else run / WEIGHTS
    return Path(os.path.relpath(file.resolve(), out.resolve().parent)).as_posix()


def _model_fields(description: Description) -> dict[str, Any]:
    """Return the fields of the extension in the item's properties."""
    card, size = description.card, description.card.window[0]
    pretrained = card.weights_from.rpartition(", first ")[2] != RANDOM
    torch = card.versions.get("torch", "")
    encoder = "" if card.model.architecture == "unet" else f" with {card.model.encoder}"
    kind = "Linear classifier" if card.model.architecture == "linear" else f"U-Net ({card.model.architecture})"
    return {
        "mlm:name": _model_name(card.name),
        "mlm:architecture": f"{kind}{encoder}",
        "mlm:tasks": [TASK],
        "mlm:framework": "PyTorch",
        **({"mlm:framework_version": torch} if SEMVER.fullmatch(torch) else {}),
        "mlm:total_parameters": description.parameters,
        "mlm:pretrained": pretrained,
        "mlm:pretrained_source": card.weights_from if pretrained else None,
        "mlm:input": [
            {
                "name": "image",
                "description": "Invalid pixels are replaced by the mean of their band.",
                "bands": [*card.band_names[: card.bands], *(_derived_band(card, number) for number in _indices(card))],
                "input": {
                    "shape": [-1, len(card.band_names), size, size],
                    "dim_order": DIMENSIONS,
                    "data_type": card.dtype,
                },
                "value_scaling": [
                    {"type": "z-score", "mean": mean, "stddev": std}
                    for mean, std in zip(card.mean, card.std, strict=True)
                ],
                "resize_type": None,
            }
        ],
        "mlm:output": [
            {
                "name": "logits",
                "description": _output_description(card),
                "tasks": [TASK],
                "result": {
                    "shape": [-1, card.legend.outputs, size, size],
                    "dim_order": ["batch", "class", "height", "width"],
                    "data_type": "float32",
                },
                "classification:classes": _classes(card),
            }
        ],
    }


def _asset_fields(description: Description) -> dict[str, Any]:
    kind, artifact = ("application/zip", "geograft.export") if is_bundle(description.run) else (None, None)
    return {
        "type": kind or "application/octet-stream; application=safetensors",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": artifact or "safetensors.torch.save_file",
    }


def _indices(card: ModelCard) -> range:
    return range(len(card.indices))


def _derived_band(card: ModelCard, number: int) -> dict[str, str]:
    """Return a spectral index as a band with its expression of b1, b2, ..."""
    index = card.indices[number]
    return {"name": card.band_names[card.bands + number], "format": "python", "expression": index.formula}


def _output_description(card: ModelCard) -> str:
    function = "the sigmoid" if card.legend.outputs == 1 or card.legend.overlapping else "the softmax"
    used = ", ".join(f"{value:.4g}" for value in card.used_thresholds)
    rule = f"A class is mapped from probability {used} on." if used else "The most probable class is mapped."
    return f"Probabilities are {function} of the logits divided by {card.temperature:.6g}. {rule}"


def _classes(card: ModelCard) -> list[dict[str, Any]]:
    legend, count = card.legend, Counter(map(_slug, card.legend.names))
    return [
        {
            "value": value,
            "name": _slug(name) if count[_slug(name)] == 1 else f"{_slug(name)}-{value}",
            "title": name,
            "description": name,
            "color_hint": colour.lstrip("#"),
        }
        for name, value, colour in zip(legend.names, legend.values, legend.colours, strict=True)
    ]


def _slug(name: str) -> str:
    """Return a name of ASCII letters, digits, hyphens and underscores.

    >>> _slug("forêt / open")
    'for-t-open'
    """
    return re.sub(r"[^0-9A-Za-z_]+", "-", name).strip("-") or "unnamed"


def _model_name(name: str) -> str:
    """Return a name as the extension wants it: of three characters or more, first a letter.

    >>> _model_name("2026 crowns")
    'run 2026-crowns'
    """
    slug = _slug(name).strip("-_")
    return slug if re.fullmatch(r"[A-Za-z][\w-]+[A-Za-z0-9]", slug, re.ASCII) else f"run {slug or 'unnamed'}"


ABSOLUTE = re.compile(r"\w+:")
GEOTIFF = "image/tiff"
TIFF_SUFFIXES = (".tif", ".tiff")


def find_assets(search: StacConfig) -> tuple[RasterInput, ...]:
    """Return the rasters of a STAC catalogue that `search` asks for, by time and id of their items.

    An item with several assets that have bands is a scene, unless assets are chosen.

    Requests go to the catalogue's host and to those in `search.asset_hosts`, wherever else an item points.

    Raises:
        InputError: if the catalogue cannot be read or is not STAC; if no item is found, or more than `max_items`; if an
            item lacks an asset; if an asset is on another host.
        SettingError: if an API is to be searched and pystac-client is not installed.
    """
    source = to_place(search.stac_url)
    if search.bbox and (len(search.bbox) != 4 or search.bbox[1] > search.bbox[3]):
        raise SettingError(f"--bbox {' '.join(map(str, search.bbox))}: give west, south, east and north in degrees.")
    items = sorted(_items(source, search), key=lambda item: (_interval(item)[0], str(item.get("id"))))
    if not items:
        raise InputError(f"{source} has no item of the given collections, box and time. Change the search.")
    if len(items) > search.max_items:
        raise InputError(
            f"{source} has more than {search.max_items} such items. Narrow the search or raise --max-items."
        )
    return tuple(found for item in items for found in _item_rasters(item, source, search))


def _items(source: Place, search: StacConfig) -> list[dict[str, Any]]:
    """Return the items of a catalogue, each with the key `base`, relative to which its links are."""
    content = _read_json(source)
    kind, links = content.get("type"), _links(content)
    if kind == "Feature":
        return [content | {"base": source}]
    if kind == "FeatureCollection":
        features = content.get("features")
        listed = features if isinstance(features, list) else []
        items = [item | {"base": _base(item, source)} for item in listed if isinstance(item, dict)]
        if any(link.get("rel") == "next" for link in links):
            raise InputError(f"{source} is one page of several. Give the address of the API or the collection.")
    elif isinstance(source, Location) and any(link.get("rel") in ("search", "items") for link in links):
        return _searched(source, content, search)
    elif kind in ("Collection", "Catalog"):
        places = [_resolve(str(link.get("href")), source) for link in links if link.get("rel") == "item"]
        children = [str(_resolve(str(link.get("href")), source)) for link in links if link.get("rel") == "child"]
        if children and not places:
            raise InputError(f"{source} has no items, but other catalogues. Give one of these: {join_names(children)}.")
        items = [_read_json(_checked_host(place, source, search)) | {"base": place} for place in places]
    else:
        raise InputError(f"{source} is neither a STAC API nor a STAC item or collection. Check the address.")
    return [item for item in items if _is_wanted(item, search)]


def _searched(source: Location, content: dict[str, Any], search: StacConfig) -> list[dict[str, Any]]:
    """Return the items that an API finds."""
    try:
        from pystac_client import Client  # noqa: PLC0415  (an extra)
        from pystac_client.exceptions import APIError  # noqa: PLC0415
        from pystac_client.stac_api_io import StacApiIO  # noqa: PLC0415
    except ImportError as error:
        raise SettingError(f"Searching {source} needs pystac-client: pip install 'geograft[cloud]'.") from error

    asked_before = source.url

    def check(request: Any) -> Any:
        nonlocal asked_before
        request.url = asked_before = urljoin(asked_before, request.url)
        asked = _checked_host(to_place(request.url), source, search)
        if isinstance(asked, Location) and _host(asked) == _host(source) and asked.scheme in (source.scheme, "https"):
            request.headers.update(request_headers(source))
        return request

    is_collection = content.get("type") == "Collection"
    roots = [str(link.get("href")) for link in _links(content) if link.get("rel") == "root"]
    root = to_place(urljoin(source.url, roots[0])) if is_collection and roots else source
    collections = [str(content.get("id"))] if is_collection else list(search.collections)
    address = root.url if isinstance(root, Location) else source.url
    reader = StacApiIO(max_retries=_retries())
    reader.session.hooks["response"].append(_check_redirection)
    try:
        with closing(reader.session):
            # This replaces the settings of `reader`.
            client = Client.open(address, stac_io=reader, request_modifier=check, timeout=TIMEOUT_S)
            _check_search_link(client)
            found = client.search(
                collections=collections or None,
                bbox=list(search.bbox) or None,
                datetime=search.datetime or None,
                max_items=search.max_items + 1,
            )
            # While it is read, a catalogue may change, so that an item is on two pages.
            items = {(str(item.get("collection")), str(item.get("id"))): item for item in found.items_as_dicts()}
        return [item | {"base": _base(item, source)} for item in items.values()]
    except (APIError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, RecursionError) as error:
        reason = redact(" ".join(str(error).split()))[:200] or type(error).__name__
        raise InputError(f"{source} cannot be searched: {reason}. Check the address and the search.") from None


def _check_redirection(response: Any, **_: Any) -> None:
    """Raise InputError if a request, whose headers go with it, is led to another host or out of encryption."""
    if not response.is_redirect:
        return
    before, there = to_place(response.url), to_place(urljoin(response.url, response.headers["Location"]))
    same = isinstance(before, Location) and isinstance(there, Location) and _host(before) == _host(there)
    if not same or (response.url.startswith("https:") and str(there).startswith("http:")):
        response.close()
        raise InputError(f"{before} leads to {there}. Give that address, if you trust it.")


def _check_search_link(client: Any) -> None:
    """Raise InputError if the link by which an API is searched is a local file, which the library would read."""
    link = client.get_search_link()
    if link is not None and not isinstance(to_place(link.absolute_href), Location):
        raise InputError(f"{client.self_href} is searched by {redact(link.absolute_href)}, which is not on the web.")


def _retries() -> Any:
    """Return how requests of a search are repeated, as all others are."""
    from urllib3 import Retry  # noqa: PLC0415  (of an extra)

    return Retry(
        ATTEMPTS - 1,
        status_forcelist=RETRIED,
        allowed_methods=None,
        backoff_factor=FIRST_PAUSE_S,
        backoff_max=MAX_PAUSE_S,
        respect_retry_after_header=False,
        raise_on_status=False,
        redirect=False,
    )


def _base(item: dict[str, Any], source: Place) -> Place:
    """Return where the links of an item in a list on the web lead from: the item's own address, if it says it."""
    own = next((str(link.get("href")) for link in _links(item) if link.get("rel") == "self"), "")
    return _resolve(own, source) if own and isinstance(source, Location) else source


def _item_rasters(item: dict[str, Any], source: Place, search: StacConfig) -> list[RasterInput]:
    assets = item.get("assets")
    if not isinstance(assets, dict) or not all(isinstance(one, dict) and one.get("href") for one in assets.values()):
        raise InputError(f"{source}: the item {item.get('id')} has no assets with addresses. Check the catalogue.")
    tiffs = [name for name, asset in assets.items() if _is_geotiff(asset)]
    if (
        not search.assets
        and len(tiffs) != 1
        and any(one.get("bands") or one.get("eo:bands") for one in assets.values())
    ):
        return [stac_scene(item, _item_address(item), lambda href: _asset_place(href, item, source, search))]
    names = search.assets or (tiffs if len(tiffs) == 1 else ())
    missing = [name for name in names if name not in assets]
    if missing or not names:
        what = f"no asset {missing[0]}" if missing else f"{len(tiffs)} GeoTIFFs"
        raise InputError(
            f"The item {item.get('id')} of {source} has {what}. Choose with --assets from {join_names(assets)}."
        )
    return [_asset_place(str(assets[name]["href"]), item, source, search) for name in names]


def _asset_place(href: str, item: dict[str, Any], source: Place, search: StacConfig) -> Place:
    return _checked_host(_resolve(href, item["base"]), source, search)


def _item_address(item: dict[str, Any]) -> Place:
    """Return where an item is, by its id beside what named it; for messages and the names of maps."""
    base: Place = item["base"]
    return base.with_name(f"{re.sub(r'[^0-9A-Za-z_.-]+', '-', str(item.get('id'))).strip('.') or 'item'}.json")


def _is_geotiff(asset: dict[str, Any]) -> bool:
    suffix = Path(str(asset["href"]).partition("?")[0]).suffix.lower()
    return str(asset.get("type", "")).startswith(GEOTIFF) or ("type" not in asset and suffix in TIFF_SUFFIXES)


def _resolve(href: str, base: Place) -> Place:
    """Return where a link leads from `base`.

    Raises:
        InputError: if it is on the web and leads to a local file.
    """
    if isinstance(base, Location):
        there: Place = to_place(urljoin(base.url, href)) if base.is_web or ABSOLUTE.match(href) else base.parent / href
        if isinstance(there, Path):
            raise InputError(f"{base} links to {redact(href)}, which is not on the web. It is not read.")
        return there
    there = to_place(href)
    return base.parent / there if isinstance(there, Path) else there


def _checked_host(place: Place, source: Place, search: StacConfig) -> Place:
    """Return `place`; raise InputError if it is on a host that the user has not named."""
    if not isinstance(place, Location):
        return place
    own = [_host(source)] if isinstance(source, Location) else []
    if _host(place) not in (*own, *(name.rstrip("/") for name in search.asset_hosts)):
        raise InputError(f"{place} is on a host that was not named. Add --asset-hosts {_host(place)} if you trust it.")
    return place


def _host(location: Location) -> str:
    return location.host if location.is_web else f"{location.scheme}://{location.host}"


def _is_wanted(item: dict[str, Any], search: StacConfig) -> bool:
    """Return whether an item of a static catalogue is in the box, the time and the collections of a search."""
    if search.collections and item.get("collection") not in search.collections:
        return False
    box = _box(item)
    if search.bbox and len(box) in (4, 6):
        west, south, east, north = box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1]
        if west > search.bbox[2] or east < search.bbox[0] or south > search.bbox[3] or north < search.bbox[1]:
            return False
    begin, end = _interval(item)
    first, _, last = search.datetime.partition("/")
    last = last or ("" if "/" in search.datetime else first)
    after = end >= first or first in ("", "..")
    # A date stands for all of its day: compared with a time, it is a prefix.
    before = last in ("", "..") or begin <= last or begin.startswith(last)
    return after and before


def _box(item: dict[str, Any]) -> list[float]:
    """Return the bounding box of an item; empty if it has none."""
    box = item.get("bbox")
    try:
        return [float(value) for value in box] if isinstance(box, list) else []
    except (TypeError, ValueError):
        raise InputError(f"The item {item.get('id')} has the bbox {box!r:.80}, not numbers. Correct it.") from None


def _interval(item: dict[str, Any]) -> tuple[str, str]:
    """Return the first and the last time of an item, as ISO 8601 in UTC, which sorts as text."""
    found = item.get("properties")
    properties = found if isinstance(found, dict) else {}
    one = properties.get("datetime")
    return str(one or properties.get("start_datetime") or ""), str(one or properties.get("end_datetime") or "9999")


def _links(content: dict[str, Any]) -> list[dict[str, Any]]:
    links = content.get("links")
    return [link for link in links if isinstance(link, dict)] if isinstance(links, list) else []


def _read_json(place: Place) -> dict[str, Any]:
    try:
        storage, key = storage_of(place) if isinstance(place, Location) else (open_storage(place.parent), place.name)
        content = json.loads(storage.get(key))
    except FileNotFoundError as error:
        raise InputError(f"{place} does not exist. Check the address.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{place} is not JSON: {error}. Give the address of a STAC API, item or collection."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{place} is not a STAC object. Give the address of a STAC API, item or collection.")
    return content
