"""`geograft serve`: a project or a run with its rasters and maps, as a map in the browser of this machine."""

import secrets
import socket
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from geograft.card import ModelCard, read_card
from geograft.config import ServeConfig
from geograft.config.recipes import LABEL_FILE, MAPS, PROJECT_FILE, RUN, SUGGESTED, read_project
from geograft.cores import can_limit_process
from geograft.dataset.scenes import scene_names
from geograft.errors import InputError, SettingError
from geograft.files import StrPath, json_digest, to_paths, translate_write_errors
from geograft.geo.formats import remote_name
from geograft.geo.rasters.scene_image import image_state
from geograft.geo.rasters.scene_image import read_info as read_scene_info
from geograft.geo.rasters.tags import sibling_path
from geograft.geo.rasters.writer import write_local_copy
from geograft.geo.scene import BandChoice, find_band
from geograft.geo.scene_layouts import find_scene
from geograft.geo.webmap import is_on_earth, needs_reduction, write_reduced
from geograft.interrupts import Interrupted
from geograft.legend import BACKGROUND_COLOUR
from geograft.progress import announce
from geograft.server.layers import (
    SIBLINGS,
    Kind,
    ShownClass,
    Subject,
    file_revision,
    is_error_raster,
    layers_of,
    map_classes,
    read_info,
)

HOST = "127.0.0.1"
PORT = 8753
TOKEN_BYTES = 24
MAX_CONNECTIONS = 200
MAX_UPLOADS_MB = 2000
CLOSE_S = 5
"""Time that open requests have to end when the server does."""
REVIEW = Path("review", "errors")
"""Where the error rasters of a project are, if `geograft review RUN --out PROJECT/review` was called."""
SCENES = "scenes"
"""Folder of copies of scenes, in the user's cache folder."""
OVERVIEWS = "overviews"
"""Folder of copies of images at lower resolution, in the user's cache folder."""
DEFAULT = ServeConfig()
PACKAGES = ("fastapi", "uvicorn", "PIL")


def serve(  # noqa: PLR0913, PLR0917 (the options of the command line)
    path: StrPath,
    rasters: StrPath | Sequence[StrPath] = (),
    port: int = PORT,
    open_browser: bool = False,
    read_only: bool = False,
    uploads_mb: int = 0,
    config: ServeConfig = DEFAULT,
) -> None:
    """Show a project, or a run with `rasters` (images and class maps), in the browser, until it is interrupted.

    Prints the address, which contains a token that is new each time. Listens on this machine only. With `port` 0, any
    free port. `open_browser` opens the address; `read_only` changes nothing for whoever has the address. With
    `uploads_mb`, polygons and masks of up to as many megabytes can be sent, to become labels of the project. The
    basemap of `config` is shown in place of the project's.

    Raises:
        InputError: when there is nothing to show, or a raster cannot be read.
        SettingError: when the port is in use, the extra `serve` is not installed, or uploads are not possible.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise SettingError(f"geograft serve needs {', '.join(missing)}: pip install 'geograft[serve]'.")
    subject = served_subject(Path(path), to_paths(rasters))
    check_uploads(subject, uploads_mb, read_only)
    # What cannot be shown is told now.
    subject = replace(subject, basemap=shown_basemap(subject, config))
    subject = replace(subject, reduced=reduced_images(subject))
    with listening_socket(port) as listener:
        _run(subject, listener, open_browser, read_only, uploads_mb)


def check_uploads(subject: Subject, uploads_mb: int, read_only: bool) -> None:
    """Raise SettingError if uploads are asked for and not possible."""
    if not 0 <= uploads_mb <= MAX_UPLOADS_MB:
        raise SettingError(f"--uploads {uploads_mb}: a file may have 1 to {MAX_UPLOADS_MB:,} MB; 0 turns uploads off.")
    if not uploads_mb:
        return
    if read_only:
        raise SettingError("--uploads lets the page change labels, and --read-only forbids that. Give one of them.")
    if not can_limit_process():
        raise SettingError("--uploads needs limits of processes, which Windows lacks. Use `geograft project --import`.")
    if subject.folder is None:
        raise SettingError("--uploads adds labels to a project, and a run has none. Serve the project.")
    if remote := next((path for _, path in subject.images if remote_name(path)), None):
        raise SettingError(f"--uploads needs local images: imports reach no network. Download {remote}.")


def shown_basemap(subject: Subject, config: ServeConfig) -> ServeConfig:
    """Return the basemap that the page may show: that of `config`, or the project's; none beside rasters without CRS.

    Raises:
        InputError: when a raster cannot be read.
    """
    on_earth = all(is_on_earth(layer.raster.info.grid.crs) for layer in layers_of(subject))
    return (config if config.basemap else subject.basemap) if on_earth else DEFAULT


def reduced_images(subject: Subject) -> dict[str, Path]:
    """Return a copy at lower resolution, by revision, of each large image without overviews.

    Copies are made in the user's cache folder, and found there the next time.

    Raises:
        InputError: when an image cannot be read.
        OutputError: when a copy cannot be written.
    """
    found = {}
    for _, path in subject.images:
        if needs_reduction(path):
            revision = file_revision(path)
            copy = (
                user_cache_path("geograft", appauthor=False)
                / OVERVIEWS
                / f"{json_digest([str(path.resolve()), revision])}.tif"
            )
            if not copy.is_file():
                write_reduced(path, copy)
            found[revision] = copy
    return found


def listening_socket(port: int) -> socket.socket:
    """Return a socket that listens on a port of this machine.

    Raises:
        SettingError: when the port is in use or not allowed.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(MAX_CONNECTIONS)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise SettingError(f"port {port} cannot be used: {reason}. Choose another --port, or 0 for any.") from error
    return listener


def _run(subject: Subject, listener: socket.socket, open_browser: bool, read_only: bool, uploads_mb: int) -> None:
    import uvicorn  # noqa: PLC0415 (an extra)

    from geograft.server.app import create_app  # noqa: PLC0415 (needs the extra)
    from geograft.server.guard import Access  # noqa: PLC0415

    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(TOKEN_BYTES)
    hosts = f"{HOST}:{port}", f"localhost:{port}"
    access = Access(token, hosts, read_only, uploads_mb * 10**6, subject.basemap.basemap_origin)
    config = uvicorn.Config(
        create_app(subject, access),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http="h11",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=CLOSE_S,
    )
    address = f"http://{HOST}:{port}/#{token}"
    announce(f"{subject.title} is at {address}")
    announce("Only this machine and whoever has the address can see it. Ctrl-C ends it.")
    if open_browser:
        webbrowser.open(address)
    try:
        # uvicorn ends at SIGINT and SIGTERM, and raises them again when it has ended.
        uvicorn.Server(config).run(sockets=[listener])
    except Interrupted:
        announce("Ended.")


def served_subject(path: Path, rasters: Sequence[Path]) -> Subject:
    """Return what is shown of a project's folder, or of a run with rasters.

    Raises:
        InputError: when `path` is neither, or something cannot be read.
        SettingError: when a project is given with rasters.
    """
    if not (path / PROJECT_FILE).exists():
        return run_subject(path, rasters)
    if rasters:
        raise SettingError(f"{path} is a project, which has its own images: {rasters[0]} is not shown. Leave it out.")
    return project_subject(path)


def project_subject(folder: Path) -> Subject:
    """Return what is shown of a project: its images, and what `geograft go` makes of them.

    Raises:
        InputError: when its settings cannot be read.
    """
    settings, _ = read_project(folder)
    paths = [folder / path for path in settings.images]
    names = scene_names(paths)
    classes = tuple(ShownClass(i, each.name, each.colour) for i, each in enumerate(settings.classes, start=1))
    maps = tuple((name, folder / MAPS / f"{name}.tif") for name in names)
    own = {
        "report.html": ("Report", folder / RUN / "report.html"),
        LABEL_FILE: ("Labels and areas", folder / LABEL_FILE),
        SUGGESTED: ("Areas to label next", folder / SUGGESTED),
    }
    images = tuple(zip(names, paths, strict=True))
    reviews = tuple((name, folder / REVIEW / f"{name}.tif") for name in names)
    downloads = map_downloads(maps) | own
    run, basemap = folder / RUN, settings.serve
    return Subject(settings.title, "project", classes, images, maps, reviews, folder, run, downloads, basemap)


def run_subject(run: Path, rasters: Sequence[Path]) -> Subject:
    """Return what is shown of a run: images, and class maps with the probabilities and so on beside them.

    Raises:
        InputError: when it is not a run, there are no rasters, or one cannot be read.
    """
    card = read_card(run)
    if not rasters:
        raise InputError(f"{run} is a run, which has no raster to show. Give images and maps: serve {run} RASTER ...")
    names, rasters = scene_names(rasters), [_shown_file(path, card) for path in rasters]
    kinds = [_kind_of(path) for path in rasters]
    images, maps, reviews = (
        tuple((name, path) for name, path, own in zip(names, rasters, kinds, strict=True) if own == wanted)
        for wanted in ("image", "classes", "errors")
    )
    legend = card.legend
    classes = tuple(
        ShownClass(value, name, colour)
        for value, name, colour in zip(legend.values, legend.names, legend.colours, strict=True)
        if colour != BACKGROUND_COLOUR
    )
    own = {"report.html": ("Report", run / "report.html"), run.name: ("Model for Geograft", run)}
    folder = run if run.is_dir() else None
    return Subject(card.name, "run", classes, images, maps, reviews, None, folder, map_downloads(maps) | own)


def _shown_file(path: Path, card: ModelCard) -> Path:
    """Return a raster itself; of a scene with a file per band, a copy of the bands of a run in the user's cache folder.

    Raises:
        InputError: when it is a scene that cannot be read.
    """
    files = find_scene(path)
    if files is None:
        return path
    bands = card.band_names[: card.bands]
    known = all(find_band(files.bands, name) for name in bands)
    info = read_scene_info(files, BandChoice(bands if known else ()))
    copy = user_cache_path("geograft", appauthor=False) / SCENES / f"{json_digest(image_state(info))}.tif"
    if not copy.is_file():
        announce(f"The bands of {path} are being copied ...")
        with translate_write_errors(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
        write_local_copy(info, copy)
    return copy


def _kind_of(path: Path) -> Kind:
    """Return whether a raster is an error raster, a class map, or else an image.

    Raises:
        InputError: when it is no raster.
    """
    info = read_info(path)
    if is_error_raster(info):
        return "errors"
    try:
        map_classes(info)
    except InputError:
        return "image"
    return "classes"


def map_downloads(maps: Sequence[tuple[str, Path]]) -> dict[str, tuple[str, Path]]:
    """Return title and file of the maps and of what lies beside them, by file name."""
    found: dict[str, tuple[str, Path]] = {}
    for name, path in maps:
        found[path.name] = f"Map of {name}", path
        for what in SIBLINGS.values():
            sibling = sibling_path(path, what)
            found[sibling.name] = f"{what.capitalize()} of {name}", sibling
        found[f"{path.stem}.gpkg"] = f"Polygons of {name}", path.with_suffix(".gpkg")
    return found
