"""Build the documentation site with Sphinx. `make site` writes it to site/.

python scripts/make_site.py [FOLDER]

The pages are those of docs/, DESIGN.md and LOG.md, with a reference of the command line from --help and one of Python
from docstrings. A warning is an error.
"""

import inspect
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import make_docs
from sphinx.cmd.build import main as build

import geograft

ROOT = Path(__file__).parents[1]
OUTSIDE = {"README.md": "index.md", "DESIGN.md": "design.md", "LOG.md": "log.md"}
"""Files of the repository's root and their pages; the front page has its own text."""
RESULTS = (
    "geograft.commands.evaluate.Evaluation",
    "geograft.commands.predict.Prediction",
    "geograft.mapping.job.MapResult",
    "geograft.commands.polygons.PolygonSummary",
    "geograft.commands.suggest.Suggestions",
    "geograft.commands.calibrate.Calibration",
    "geograft.card.ModelCard",
)
"""Classes that functions return, which are not public names themselves."""


def copy_pages(folder: Path) -> None:
    """Copy the pages into the source folder of the site and add the generated ones."""
    shutil.copytree(ROOT / "docs", folder, dirs_exist_ok=True)
    for name, page in OUTSIDE.items():
        if page != "index.md":
            text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
            (folder / page).write_text(text, encoding="utf-8")
    (folder / "commands.md").write_text(make_docs.page(), encoding="utf-8")
    for page in folder.rglob("*.md"):
        page.write_text(site_text(page.read_text(encoding="utf-8")), encoding="utf-8")
    notebook = folder / "tutorial.ipynb"
    notebook.write_text(site_text(notebook.read_text(encoding="utf-8")), encoding="utf-8")
    with (folder / "reference.md").open("a", encoding="utf-8") as page:
        page.write(reference())
    add_other_pages(folder)


def site_text(text: str) -> str:
    """Return the text of a page with links to files of the repository's root changed to their pages."""
    for name, page in OUTSIDE.items():
        text = text.replace(f"](../{name})", f"]({page})")
    return text


def add_other_pages(folder: Path) -> None:
    """List the pages that docs/index.md does not name under their own heading."""
    index = folder / "index.md"
    text = index.read_text(encoding="utf-8")
    named = {line for block in re.findall(r"```{toctree}(.*?)```", text, re.DOTALL) for line in block.split()}
    pages = sorted(str(page.relative_to(folder).with_suffix("")) for page in folder.rglob("*.md"))
    if others := [page for page in pages if page not in named | {"index"}]:
        lines = ["", "```{toctree}", ":caption: More", ":maxdepth: 1", "", *others, "```", ""]
        index.write_text(text + "\n".join(lines), encoding="utf-8")


def reference() -> str:
    """Return the Markdown of the Python reference: a directive for each public name."""
    kinds: dict[str, list[str]] = {
        "Functions": [],
        "Runs and tile sets": [],
        "Sources": [],
        "Settings": [],
        "Errors": [],
    }
    for name in geograft.__all__:
        value = getattr(geograft, name)
        if inspect.isfunction(value):
            kinds["Functions"].append(directive("autofunction", f"geograft.{name}"))
        elif issubclass(value, Exception):
            kinds["Errors"].append(directive("autoexception", f"geograft.{name}"))
        else:
            kind = {"Source": "Sources", "Config": "Settings", "Recipe": "Settings", "Variant": "Settings"}
            heading = next((kinds[kind[end]] for end in kind if name.endswith(end)), kinds["Runs and tile sets"])
            heading.append(directive("autoclass", f"geograft.{name}"))
    kinds["Results"] = [directive("autoclass", name) for name in RESULTS]
    return "".join(f"\n## {heading}\n\n{''.join(parts)}" for heading, parts in kinds.items())


def directive(kind: str, name: str) -> str:
    """Return a directive of autodoc in MyST."""
    members = "   :members:\n" if kind == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {kind}:: {name}\n{members}```\n\n"


def build_site(out: Path) -> int:
    """Build the site into `out` and return Sphinx's exit code: 0 without a warning."""
    with TemporaryDirectory() as scratch:
        source = Path(scratch) / "docs"
        copy_pages(source)
        options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(Path(scratch) / "doctrees")]
        return int(build([*options, str(source), str(out)]))


if __name__ == "__main__":
    sys.exit(build_site(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site"))
