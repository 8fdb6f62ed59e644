"""What the requests of one server share: what is shown, its labels and jobs, who may ask, and the stream of changes."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field

from geograft.errors import GeograftError, InputError
from geograft.geo.grid import Window
from geograft.geo.webmap import MAX_ZOOM
from geograft.server.guard import Access
from geograft.server.jobs import Jobs, Kind, Latest, Task, model_files, task_of
from geograft.server.labels import Labels
from geograft.server.layers import Layer, Subject, error_layers, file_revision, layers_of
from geograft.server.quick import QuickMaps, windows_of
from geograft.server.rounds import Rounds

POLL_S, HEARTBEAT_S = 1.0, 15.0
"""How often files are looked at for changes, and how often a stream says that it is alive."""
STREAM_S = 0.25
MAX_STREAMS = 32
MAX_VIEW_PX = 2048
"""Largest side of what is mapped before the rest of an image, around the middle of the view."""


Longitude = Annotated[float, Field(ge=-180, le=180)]
Latitude = Annotated[float, Field(ge=-90, le=90)]
Bounds = tuple[Longitude, Latitude, Longitude, Latitude]
"""West, south, east and north, in degrees. The page cuts what it shows at the antimeridian."""


class Service:
    """What the requests of one server share."""

    def __init__(self, subject: Subject, access: Access) -> None:
        self.subject, self.access = subject, access
        self.labels, self.latest = Labels(subject), Latest()
        home = subject.folder or subject.run
        self.jobs = Jobs(home, self.latest.publish, self._task) if home and not access.read_only else None
        self.rounds = Rounds(subject, not access.read_only) if subject.folder else None
        own = subject.folder if self.can_train else None
        self.quick = QuickMaps(lambda: self.subject, self.latest.publish, own) if own else None
        self.view: Bounds | None = None
        """Part of the map that the page showed when it started a job: it is mapped first."""
        self.streams = 0
        self._stop = threading.Event()
        self._labels_state = ""

    @property
    def revision(self) -> str:
        """A text that changes when a raster, a file that can be downloaded, or a round does."""
        files = [path for _, path in (*self.subject.images, *self.subject.maps, *self.subject.downloads.values())]
        files += [path for _, path in self.subject.reviews]
        files += model_files(self.subject).values()
        files += [path for _, path in (*self.subject.view_maps, *self.subject.quick_maps)]
        return file_revision(*files, self.subject.suggestions) + (self.rounds.revision if self.rounds else "")

    @property
    def can_label(self) -> bool:
        """Whether labels can be changed."""
        path = self.subject.label_file
        return path is not None and path.is_file() and not self.access.read_only

    def layers(self) -> list[Layer]:
        """Return all layers of the files that exist now, and of the errors that the labels show.

        Raises:
            InputError: when the rasters cannot be read.
        """
        layers = layers_of(self.subject)
        # Labels that cannot be read now show no errors; their own requests say why.
        with suppress(InputError):
            layers += [each for each in error_layers(layers, self.labels.state()) if self.labels.sample(each).areas]
        return layers

    def layer(self, identity: str) -> Layer:
        """Return a layer by its id.

        Raises:
            HTTPException: 404 if there is none.
            InputError: when the rasters cannot be read.
        """
        for layer in self.layers() if identity.startswith("errors-") else layers_of(self.subject):
            if layer.id == identity:
                return layer
        raise HTTPException(404, f"There is no layer {identity[:60]!r}.")

    @property
    def can_train(self) -> bool:
        """Whether a job can train and map."""
        return self.jobs is not None and self.subject.folder is not None

    def _task(self, kind: Kind) -> Task:
        return task_of(self.subject, kind, self.windows_in_view())

    def windows_in_view(self) -> dict[str, Window]:
        """Return the windows of the images, by name, in the view of the page that started the last job."""
        return {} if self.view is None else windows_of(self.subject, self.view, MAX_VIEW_PX)

    def watch(self) -> None:
        """Report changes of files until `close`."""
        while not self._stop.is_set():
            # A file that cannot be read now, such as one that is locked, is read again later.
            with suppress(GeograftError, OSError):
                self.report_changes()
            if self.rounds:
                self.rounds.measure()
            self._stop.wait(POLL_S)

    def report_changes(self) -> None:
        """Publish the revisions of the project and of the labels, which are read only if their file has changed."""
        if self.rounds:
            self.rounds.update()
        self.latest.publish("project", {"revision": self.revision})
        if self.quick:
            self.quick.stop_if_mapped()
        path = self.subject.label_file
        if path is None or not path.is_file():
            return
        state = self.labels.state()
        if state != self._labels_state:
            self.latest.publish("labels", {"revision": self.labels.revision()})
            self._labels_state = state
            self.refresh_quick_maps()

    def refresh_quick_maps(self) -> None:
        """Make the quick maps again, unless a job is running, which is to make better ones."""
        if self.quick and not (self.jobs and self.jobs.is_running):
            self.quick.refresh()

    def close(self) -> None:
        """End the streams, the quick maps, and the job with its work saved."""
        self._stop.set()
        self.latest.closed = True
        if self.quick:
            self.quick.close()
        if self.jobs:
            self.jobs.close()


def service_of(request: Request) -> Service:
    """Return the service of the application."""
    service: Service = request.app.state.service
    return service


async def stream_changes(service: Service) -> AsyncIterator[str]:
    """Yield changes of the job, the project and the labels as server-sent events, until the server ends."""
    count, quiet_s = 0, 0.0
    service.streams += 1
    try:
        while not service.latest.closed:
            count, changes = service.latest.since(count)
            for kind, data in changes:
                yield f"event: {kind}\ndata: {json.dumps(data)}\n\n"
            quiet_s = 0.0 if changes else quiet_s + STREAM_S
            if quiet_s >= HEARTBEAT_S:
                quiet_s = 0.0
                yield ": still here\n\n"
            await asyncio.sleep(STREAM_S)
    finally:
        service.streams -= 1


Shared = Annotated[Service, Depends(service_of)]
Identity = Annotated[str, PathParameter(max_length=60)]
FileName = Annotated[str, PathParameter(max_length=300)]
Zoom = Annotated[int, PathParameter(ge=0, le=MAX_ZOOM)]
Position = Annotated[int, PathParameter(ge=0, lt=2**MAX_ZOOM)]
FeatureId = Annotated[int, PathParameter(ge=1, lt=2**63)]
Percentile = Annotated[float, Query(ge=0, le=100)]
Bands = Annotated[str, Query(pattern=r"^([0-9]{1,4}(,[0-9]{1,4},[0-9]{1,4})?)?$")]
Version = Annotated[str, Query(max_length=100)]
Match = Annotated[str, Header(max_length=100)]


class Problem(BaseModel):
    """An error."""

    detail: str
    """What was seen and what to do, in one line."""


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 403, 404, 405, 409, 413, 414, 415, 421, 422, 428, 503)
}
