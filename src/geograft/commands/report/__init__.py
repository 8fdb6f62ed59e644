"""`geograft report`: one self-contained HTML page about a run or a comparison."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from geograft.commands.report.page import Page, build_page
from geograft.commands.report.sources import read_subject
from geograft.commands.report.text import IOU_EXPLANATION
from geograft.errors import OutputError
from geograft.files import write_text
from geograft.locks import lock_output

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """A written page."""

    path: Path
    notes: tuple[str, ...]
    """What is missing or outdated on the page, and why."""

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        return [*(f"Note: {note}" for note in self.notes), f"report: {self.path}"]


def report(run_or_comparison: Path, out: Path | None = None) -> Report:
    """Write one self-contained HTML page about a run or a comparison to `out` (default: report.html in its folder).

    An existing page is replaced. If the tile set or a run's weights are missing, the page has a note instead of the
    images. Runs every network on a few validation tiles and the best one on up to 240; reads every pixel of the scenes
    shown, at most twelve.

    Raises:
        InputError: if the folder is neither a run nor a comparison, or a file in it cannot be read.
        OutputError: if the page cannot be written, or the name of `out` does not end in .html or .htm.
    """
    path = out or run_or_comparison / PAGE
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{path}: a report is an HTML page. Choose a name that ends in .html.")
    with lock_output(path, enabled=run_or_comparison.is_dir()):
        page = build_page(read_subject(run_or_comparison))
        write_text(path, render_html(page))
    return Report(path, tuple(page.notes))


def render_html(page: Page) -> str:
    """Return the page as HTML; all text is escaped."""
    environment = Environment(
        loader=PackageLoader("geograft"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        page=page, version=version("geograft"), iou_explanation=IOU_EXPLANATION
    )
