"""`geograft report`: one self-contained HTML page about a run or a comparison."""

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from geograft.commands.report.overview import read_map
from geograft.commands.report.page import Page, build_page
from geograft.commands.report.sources import read_subject
from geograft.commands.report.text import IOU_EXPLANATION
from geograft.errors import OutputError
from geograft.files import StrPath, optional_path, write_text
from geograft.locks import lock_output
from geograft.runs import is_bundle, unchanged_bundle_error

PAGE = "report.html"
COMMAND = re.compile(r"(`[^`]+`|\bgeograft [a-z]+(?: (?:--?[a-z-]+|[\w./~-]*[\w/~-]))+|--[a-z][a-z-]*(?: [\d.]*\d)?)")
"""A command or an option within a text: in backquotes, from "geograft VERB" on, or from "--" on."""


@dataclass(frozen=True)
class Report:
    """A written page."""

    path: Path
    notes: tuple[str, ...]
    """What is missing or outdated on the page, and why."""

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        return [*(f"Note: {note}" for note in self.notes), f"report: {self.path}"]


def report(
    run_or_comparison: StrPath,
    out: StrPath | None = None,
    class_map: StrPath | None = None,
    tiles: StrPath | None = None,
) -> Report:
    """Write one self-contained HTML page about a run or a comparison to `out` (default: report.html in its folder).

    With `class_map`, a map that `predict` wrote, the page shows an overview of it and the mapped area. An existing page
    is replaced. `tiles` is the current path of the tile set, if it was moved; a bundle does not know it, and needs
    `out`. If the tile set or a run's weights are missing, the page has a note instead of the images. Runs every
    network on a few validation tiles and the best one on up to 240; reads every pixel of the scenes shown, at most
    twelve, and every pixel of the map twice.

    Raises:
        InputError: if the folder is neither a run nor a comparison, a file in it cannot be read, or `class_map` is not
            a map that `predict` wrote.
        OutputError: if the page cannot be written, if the name of `out` does not end in .html or .htm, and for a
            bundle without `out`.
    """
    run_or_comparison, class_map = Path(run_or_comparison), optional_path(class_map)
    if out is None and is_bundle(run_or_comparison):
        raise unchanged_bundle_error(run_or_comparison, "a report", "--out REPORT.html")
    path = optional_path(out) or run_or_comparison / PAGE
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{path}: a report is an HTML page. Choose a name that ends in .html.")
    with lock_output(path, enabled=out is not None or run_or_comparison.is_dir()):
        overview = read_map(class_map) if class_map else None
        page = build_page(read_subject(run_or_comparison), overview, optional_path(tiles))
        write_text(path, render_html(page))
    return Report(path, tuple(page.notes))


def with_code(text: str) -> Markup:
    """Return a text as HTML with commands (`geograft ...`) and options (--name VALUE) as code.

    >>> str(with_code("Use --buffer-px 29 or more & `geograft train`."))
    'Use <code>--buffer-px 29</code> or more &amp; <code>geograft train</code>.'
    """
    parts = COMMAND.split(text)
    return Markup("").join(
        part if index % 2 == 0 else Markup("<code>{}</code>").format(part.strip("`"))
        for index, part in enumerate(parts)
    )


def render_html(page: Page) -> str:
    """Return the page as HTML; all text is escaped."""
    environment = Environment(
        loader=PackageLoader("geograft"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_code"] = with_code
    return environment.get_template("report.html.jinja").render(
        page=page, version=version("geograft"), iou_explanation=IOU_EXPLANATION
    )
