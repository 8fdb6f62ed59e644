"""The web application: the page, and the API under /api that it uses. Every request passes `geograft.server.guard`.

Requests are handled in a few threads, one at a time in each; rasters are opened for a request and closed after it, so
that a map that was replaced is shown at once.
"""

import mimetypes
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteError
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from geograft.errors import GeograftError
from geograft.geo.measure import resolution_m
from geograft.geo.rasters.raster import Image
from geograft.geo.vectors.label_edits import ConflictError, LockedError
from geograft.geo.webmap import REDUCED_ZOOMS, Place, WebTile, is_on_earth, read_tile
from geograft.server import measures, pictures
from geograft.server.guard import Access, Guard
from geograft.server.jobs import MODEL_FILES, BusyError, Kind, MissingJobError, model_files
from geograft.server.labels import Feature, LayerName, MissingFeatureError, suggestions
from geograft.server.layers import Layer, Subject
from geograft.server.service import (
    MAX_STREAMS,
    PROBLEMS,
    Bands,
    Bounds,
    FeatureId,
    FileName,
    Identity,
    Match,
    Percentile,
    Position,
    Service,
    Shared,
    Version,
    Zoom,
    service_of,
    stream_changes,
)
from geograft.server.uploads import Uploads, router

THREADS = 4
EMPTY = Response(status_code=204)
STATUS: tuple[tuple[type[GeograftError], int], ...] = (
    (MissingFeatureError, 404),
    (MissingJobError, 404),
    (BusyError, 409),
    (LockedError, 503),
    (GeograftError, 422),
)
PAGE = Path(__file__).with_name("page")
ETAG = '"{}"'
IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}
NO_TILE: dict[int | str, dict[str, Any]] = {204: {"description": "The raster does not lie there."}}

api = APIRouter(prefix="/api", responses=PROBLEMS)


class FeatureBody(BaseModel):
    """A feature to store."""

    feature: Feature


class GeometryBody(BaseModel):
    """A polygon to cut out."""

    geometry: dict[str, Any]


class JobBody(BaseModel):
    """A job to start."""

    kind: Kind = "go"
    view: Bounds | None = None
    """What the page shows: it is mapped first."""


@api.get("/project")
def get_project(service: Shared) -> dict[str, Any]:
    """Return the title, the classes and the layers, and what can be done."""
    subject, layers = service.subject, service.layers()
    first = layers[0]
    bounds = np.array([layer.raster.place.bounds for layer in layers])
    crs = first.raster.place.grid.crs
    basemap, origin = subject.basemap, subject.basemap.basemap_origin
    return {
        "title": subject.title,
        "kind": subject.kind,
        "read_only": service.access.read_only,
        "georeferenced": all(is_on_earth(layer.raster.place.grid.crs) for layer in layers),
        "crs": None if crs is None else crs.name,
        "pixel_size_m": resolution_m(first.raster.place.grid),
        "bounds": [*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist()],
        "classes": [{"value": one.value, "name": one.name, "color": one.colour} for one in subject.classes],
        "layers": [layer.content for layer in layers],
        "can": {"label": service.can_label, "train": service.can_train, "export": service.jobs is not None}
        | {"upload": service.can_label and service.access.max_upload_bytes > 0},
        "basemap": {"url": basemap.basemap, "origin": origin, "attribution": basemap.attribution} if origin else None,
        "quick": service.quick is not None,
        "revision": service.revision,
    }


@api.get("/layers/{identity}/tiles/{z}/{x}/{y}.png", response_class=Response, responses=NO_TILE)
def get_tile(  # noqa: PLR0913, PLR0917 (the parts of an address)
    service: Shared,
    identity: Identity,
    z: Zoom,
    x: Position,
    y: Position,
    bands: Bands = "",
    low: Percentile = 2.0,
    high: Percentile = 98.0,
    v: Version = "",
) -> Response:
    """Return a tile of a layer in its colours, clear where it has no pixel."""
    layer, tile = service.layer(identity), _tile(z, x, y)
    if low >= high:
        raise HTTPException(422, f"low is {low:g} and high is {high:g}; low must be less.")
    numbers = tuple(map(int, bands.split(","))) if bands and layer.kind == "image" else layer.bands
    if not all(1 <= number <= layer.raster.info.bands for number in numbers):
        raise HTTPException(422, f"bands are {bands}; this image has bands 1 to {layer.raster.info.bands}.")
    path = _file_for(service.subject, layer, z)
    with Image.open(path) as image:
        found = read_tile(image, Place(image.info.grid, layer.raster.place.plane), tile, numbers)
        if found is None:
            return EMPTY
        if layer.kind == "image" and not (layer.raster.info.palette and numbers == (1,)):
            sampled = _file_for(service.subject, layer, 0)
            limits = _limits(sampled, layer.raster.revision, numbers, low, high)
            return _png(pictures.stretched(*found, limits))
        table = image.colour_table() if layer.kind == "image" else np.zeros((256, 3), np.uint8)
    if layer.kind == "image":
        return _png(pictures.palette_colours(*found, table))
    return _png(_map_picture(service, layer, tile, *found))


def _map_picture(service: Service, layer: Layer, tile: WebTile, pixels: Any, valid: Any) -> pictures.Rgba:
    """Return the pixels of a tile of anything but an image in their colours."""
    if layer.kind == "errors" and layer.drawn and not layer.in_steps:
        truth = measures.truth_in_tile(layer, tile, service.labels.sample(layer))
        single = next((value for value, name in layer.names.items() if name == layer.class_name), None)
        return pictures.error_colours(pixels, valid, truth, single)
    if layer.kind == "classes" or (layer.kind == "errors" and not layer.in_steps):
        return pictures.class_colours(pixels, valid, layer.colours)
    if layer.kind == "applicability":
        return pictures.inside_outside(pixels, valid)
    return pictures.shaded(pictures.value_codes(pixels, valid), layer.kind == "uncertainty")


@api.get("/layers/{identity}/values/{z}/{x}/{y}.png", response_class=Response, responses=NO_TILE)
def get_values(service: Shared, identity: Identity, z: Zoom, x: Position, y: Position, v: Version = "") -> Response:
    """Return a tile of values from 0 to 1 as red in steps of 1/250, 255 where there is none.

    Of errors, green is 1 where the labels have the class, and there are values only in labelled scoring areas.
    """
    layer, tile = service.layer(identity), _tile(z, x, y)
    if not layer.in_steps:
        raise HTTPException(404, f"The layer {identity} has no values from 0 to 1.")
    with Image.open(layer.raster.path) as image:
        found = read_tile(image, layer.raster.place, tile, layer.bands)
    if found is None:
        return EMPTY
    codes = pictures.value_codes(*found)
    if layer.kind == "errors":
        return _png(pictures.truth_picture(codes, measures.truth_in_tile(layer, tile, service.labels.sample(layer))))
    return _png(pictures.value_picture(codes))


def _file_for(subject: Subject, layer: Layer, z: int) -> Path:
    """Return the file for tiles of a layer at zoom `z`: the raster, or its copy at lower resolution for low zooms."""
    far = z <= layer.raster.place.zooms[1] - REDUCED_ZOOMS
    return subject.reduced.get(layer.raster.revision, layer.raster.path) if far else layer.raster.path


def _tile(z: int, x: int, y: int) -> WebTile:
    tile = WebTile(z, x, y)
    if not tile.is_on_map():
        raise HTTPException(404, f"Zoom {z} has no tile {x}, {y}.")
    return tile


@lru_cache(maxsize=256)
def _limits(path: Path, revision: str, bands: tuple[int, ...], low: float, high: float) -> Any:
    with Image.open(path) as image:
        return pictures.sample_percentiles(image, bands, low, high)


def _png(picture: pictures.Rgba) -> Response:
    return Response(pictures.png(picture), media_type="image/png", headers=IMMUTABLE)


@api.get("/layers/{identity}/pixel")
def get_pixel(
    service: Shared,
    identity: Identity,
    lng: Annotated[float, Query(ge=-180, le=180)],
    lat: Annotated[float, Query(ge=-90, le=90)],
) -> dict[str, Any]:
    """Return the values of the pixel at a place."""
    found = measures.pixel_values(service.layer(identity), lng, lat)
    if found is None:
        raise HTTPException(404, "There is no pixel of this layer.")
    return found


@api.get("/layers/{identity}/area")
def get_area(service: Shared, identity: Identity, threshold: Annotated[float, Query(ge=0, le=1)]) -> dict[str, Any]:
    """Return the area where the probability reaches a threshold, and its IoU in the labelled scoring areas."""
    layer = service.layer(identity)
    if layer.kind != "probability":
        raise HTTPException(404, f"The layer {identity} has no threshold.")
    return measures.area_above(layer, threshold) | measures.iou_at(layer, threshold, service.labels.sample(layer))


class ViewBody(BaseModel):
    """What a page shows."""

    bounds: Bounds


@api.put("/view", status_code=204)
def put_view(service: Shared, body: ViewBody) -> None:
    """Say what the page shows, which is mapped quickly as long as no network is trained."""
    if service.quick is None:
        raise HTTPException(403, "Only the server of a project makes quick maps.")
    if service.quick.look_at(body.bounds):
        service.refresh_quick_maps()


@api.get("/suggestions")
def get_suggestions(service: Shared) -> dict[str, Any]:
    """Return the areas to label next as GeoJSON, the most useful first."""
    return suggestions(service.subject)


@api.post("/jobs")
def post_job(service: Shared, body: JobBody) -> dict[str, Any]:
    """Start a job: train and map (go), or export the model, which is then one of the files."""
    if service.jobs is None or (body.kind == "go" and not service.can_train):
        raise HTTPException(403, "A run is not trained here. Serve the project that it belongs to.")
    service.view = body.view
    return asdict(service.jobs.start(body.kind))


@api.get("/jobs")
def get_jobs(service: Shared) -> list[dict[str, Any]]:
    """Return the last job, if there was any."""
    return [asdict(job) for job in service.jobs.all] if service.jobs else []


@api.delete("/jobs/{identity}")
def delete_job(service: Shared, identity: FeatureId) -> dict[str, Any]:
    """Cancel a job; what is finished is kept."""
    if service.jobs is None:
        raise HTTPException(404, "This server has no jobs.")
    return asdict(service.jobs.cancel(identity))


@api.get("/events", response_class=StreamingResponse)
async def get_events(service: Shared) -> StreamingResponse:
    """Return changes of the job, the project and the labels as they happen, as server-sent events."""
    if service.streams >= MAX_STREAMS:
        raise HTTPException(503, f"There are {MAX_STREAMS} pages open already. Close some.")
    return StreamingResponse(stream_changes(service), media_type="text/event-stream")


@api.get("/history")
def get_history(service: Shared) -> list[dict[str, Any]]:
    """Return the scores of the rounds of labelling and training."""
    return service.rounds.all if service.rounds else []


@api.get("/files")
def get_files(service: Shared) -> list[dict[str, Any]]:
    """Return the files that can be downloaded, and those that a job can make: without bytes, with its kind."""
    existing = [(name, *entry) for name, entry in service.subject.downloads.items() if entry[1].is_file()]
    found = [{"name": name, "title": title, "bytes": path.stat().st_size, "kind": ""} for name, title, path in existing]
    for kind, path in model_files(service.subject).items():
        if path.is_file() or service.jobs is not None:
            size = path.stat().st_size if path.is_file() else None
            found.append({"name": path.name, "title": MODEL_FILES[kind][0], "bytes": size, "kind": kind})
    return found


@api.get("/files/{name}", response_class=FileResponse)
def get_file(service: Shared, name: FileName) -> FileResponse:
    """Return one of these files."""
    _, path = service.subject.downloads.get(name, ("", None))
    path = path or next((each for each in model_files(service.subject).values() if each.name == name), None)
    if path is None or not path.is_file():
        raise HTTPException(404, f"There is no file {name[:60]!r}.")
    return FileResponse(path, filename=name, media_type="application/octet-stream")


@api.get("/{layer}")
def get_features(service: Shared, layer: LayerName, response: Response) -> dict[str, Any]:
    """Return all labels or areas as GeoJSON."""
    found = service.labels.collection(layer)
    response.headers["etag"] = ETAG.format(found["revision"])
    return found


@api.post("/{layer}")
def post_feature(service: Shared, layer: LayerName, body: FeatureBody, if_match: Match = "") -> Response:
    """Add a label or an area, and return it with its id."""
    return _written(service, layer, if_match, lambda revision: service.labels.add(layer, body.feature, revision))


@api.put("/{layer}/{identity}")
def put_feature(
    service: Shared, layer: LayerName, identity: FeatureId, body: FeatureBody, if_match: Match = ""
) -> Response:
    """Change a label or an area, and return it."""
    change = service.labels.change
    return _written(service, layer, if_match, lambda revision: change(layer, identity, body.feature, revision))


@api.delete("/{layer}/{identity}")
def delete_feature(service: Shared, layer: LayerName, identity: FeatureId, if_match: Match = "") -> Response:
    """Delete a label or an area."""
    return _written(service, layer, if_match, lambda revision: ({}, service.labels.remove(layer, identity, revision)))


@api.post("/labels/{identity}/subtract")
def subtract(service: Shared, identity: FeatureId, body: GeometryBody, if_match: Match = "") -> Response:
    """Cut a polygon out of a label, and return the features that remain of it."""
    cut = service.labels.subtract
    return _written(service, "labels", if_match, lambda revision: cut(identity, body.geometry, revision))


def _written(service: Service, layer: LayerName, if_match: str, write: Callable[[str], tuple[Any, str]]) -> Response:
    """Return the answer to a change of the label file, with the new revision, or the present features if it was stale.

    Raises:
        HTTPException: 428 without a revision.
    """
    revision = if_match.strip().removeprefix("W/").strip('"')
    if not revision:
        raise HTTPException(428, "Send the revision of the labels that you have seen in the header If-Match.")
    try:
        content, after = write(revision)
    except ConflictError as error:
        present = service.labels.collection(layer)
        headers = {"etag": ETAG.format(present["revision"])}
        return JSONResponse({"detail": str(error), "collection": present}, 409, headers)
    service.latest.publish("labels", {"revision": after})
    return JSONResponse(content, headers={"etag": ETAG.format(after)})


class PageFiles(StaticFiles):
    """The built page; the names of its assets change with their content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file of the page."""
        response = await super().get_response(path, scope)
        if path.startswith("assets/") and response.status_code == 200:
            response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


async def _geograft_error(request: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    return JSONResponse({"detail": service_of(request).subject.shorten_paths(str(error))}, status)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteError)
    return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    if tuple(fault["loc"]) == ("path", "layer"):
        return JSONResponse({"detail": "Not Found"}, 404)
    where = ".".join(map(str, fault["loc"][1:])) or "the request"
    return JSONResponse({"detail": f"{where}: {fault['msg']}"[:500]}, 422)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    if service.jobs:
        service.jobs.resume()
    watcher = threading.Thread(target=service.watch, name="geograft-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        if app.state.uploads:
            app.state.uploads.close()
        await to_thread.run_sync(service.close)


def create_app(subject: Subject, access: Access, page: Path = PAGE) -> Guard:
    """Return the web application that shows `subject`; `page` is the folder of the built page."""
    app = FastAPI(
        title="Geograft", version=version("geograft"), lifespan=_lifespan, docs_url=None, redoc_url=None,
        openapi_url="/api/openapi.json",
    )  # fmt: skip
    app.state.service = Service(subject, access)
    size = access.max_upload_bytes
    app.state.uploads = Uploads(subject, subject.folder, size) if subject.folder and size else None
    app.include_router(router)
    app.include_router(api)
    for kind, handler in (
        (GeograftError, _geograft_error),
        (StarletteError, _http_error),
        (RequestValidationError, _validation_error),
    ):
        app.add_exception_handler(kind, handler)
    if page.is_dir():
        # The types of a machine's registry may be others, with which browsers refuse scripts.
        mimetypes.add_type("text/javascript", ".js")
        mimetypes.add_type("text/javascript", ".mjs")
        app.mount("/", PageFiles(directory=page, html=True))
    return Guard(app, access)
