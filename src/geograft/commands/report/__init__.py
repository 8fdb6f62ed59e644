"""`geograft report`: a run or a comparison becomes one HTML page that opens anywhere and can be mailed."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from geograft.commands.report.page import Page, page_of
from geograft.commands.report.sources import read_subject
from geograft.commands.report.text import IOU_IN_WORDS
from geograft.errors import OutputError
from geograft.files import write_text

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """A written page."""

    path: Path
    notes: tuple[str, ...]
    """What is missing from the page, and why."""

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        return [*(f"Note: {note}" for note in self.notes), f"report: {self.path}"]


def report(run_or_comparison: Path, out: Path | None = None) -> Report:
    """Write one self-contained HTML page about a run or a comparison to `out` (default: report.html in its folder).

    A page that is there already is replaced. Where the tile set or a run's weights are no longer there, the page says
    so and leaves out the pictures. Runs every network on a few validation tiles, and the leading one on up to 240 of
    them; reads every pixel of the scenes that are drawn, at most twelve.

    Raises:
        InputError: when the folder is neither a run nor a comparison, or a file in it cannot be read.
        OutputError: when the page cannot be written, or `out` is no name of an HTML page.
    """
    path = out or run_or_comparison / PAGE
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{path}: a report is an HTML page. Choose a name that ends in .html.")
    page = page_of(read_subject(run_or_comparison))
    write_text(path, html(page))
    return Report(path, tuple(page.notes))


def html(page: Page) -> str:
    """Return the page as HTML. Every text from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("geograft"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        page=page, version=version("geograft"), iou_in_words=IOU_IN_WORDS
    )
