"""Every command of the documentation has existing options and valid values; every link leads somewhere."""

import re
from pathlib import Path

import pytest

from geograft.cli import app
from tests.support.docs import PAGES, ROOT, DocumentedCommand, code_blocks, commands_of

COMMANDS = [command for page in PAGES for command in commands_of(page)]
NOT_RUN = {
    "README.md": "the commands are those of docs/quickstart.md, which run",
    "docs/adapt.md": "needs a trained run and a tile set of another place; see tests/commands/test_adapt.py",
    "docs/area.md": "needs the labelled sample of the demo, which takes minutes",
    "docs/cloud.md": "needs servers; stand-ins in tests/commands/test_predict_remote.py and tests/test_outputs.py",
    "docs/compare.md": "trains several networks on the demo's scene",
    "docs/curve.md": "trains many networks; the images of the Amazon are not part of the repository",
    "docs/demo.md": "takes minutes; `make demo` runs it",
    "docs/dstl.md": "the files of the competition may not be redistributed; trains for hours",
    "docs/evaluate.md": "scores runs of the demo, which take minutes to train",
    "docs/export.md": "each format is tested in tests/commands/test_export.py and tests/exports",
    "docs/find.md": "trains many networks",
    "docs/jobs.md": "needs a job of several workers; see tests/mapping/test_worker.py",
    "docs/scale.md": "needs several machines; tests/mapping/test_worker.py and test_ray.py have several processes",
    "docs/jaccard.md": "the files of the competition may not be redistributed",
    "docs/models.md": "needs trained runs and a model hub; see tests/test_bundle.py and tests/commands/test_push.py",
    "docs/places.md": "needs tile sets of two places; see tests/commands/test_places.py",
    "docs/polygons.md": "tests/commands/test_polygons_steps.py runs them and compares what they print",
    "docs/predict.md": "each variant is tested in tests/commands/test_predict*.py",
    "docs/project.md": "tests/commands/test_project.py makes projects",
    "docs/go.md": "tests/commands/test_go.py trains a small network on a project",
    "docs/first-project.md": "takes minutes and a person who draws; scripts/make_first_project.py runs them",
    "docs/prepare.md": "each form of labels is tested in tests/dataset and tests/commands/test_prepare*.py",
    "docs/push.md": "publishes on a model hub; tests/commands/test_push.py does it on a local stand-in",
    "docs/qgis.md": "tests/commands/test_qgis.py installs the plugin and runs it where QGIS is found",
    "docs/report.md": "reports of comparisons that take minutes to train; see tests/commands/test_report*.py",
    "docs/review.md": "reviews of runs that take minutes to train; see tests/commands/test_review*.py",
    "docs/serve.md": "runs until it is interrupted; tests/server and tests/commands/test_serve.py",
    "docs/scenes.md": "needs products of agencies; tests/commands/test_scenes.py does it on small ones",
    "docs/show.md": "shows runs that take minutes to train; see tests/commands/test_show.py",
    "docs/suggest.md": "suggestions of runs that take minutes to train; see tests/commands/test_suggest.py",
    "docs/train.md": "trains for minutes",
    "docs/audit.md": "tests/commands/test_audit.py",
    "docs/calibrate.md": "calibrates a run that takes minutes to train; see tests/commands/test_calibrate.py",
    "docs/model.md": "tests/commands/test_model.py compares what it prints",
    "docs/sample.md": "needs the map of the demo; see tests/commands/test_sample.py",
}
"""Why the commands of a page are only parsed here. Those of all other pages run in tests/test_howto.py."""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.place)
def test_a_command_can_be_parsed(command: DocumentedCommand) -> None:
    function, bound, unused = app.parse_args(command.arguments, exit_on_error=False, print_error=False)[:3]
    assert callable(function)
    assert not bound.kwargs.keys() - bound.signature.parameters.keys()
    assert not unused


def test_every_page_with_commands_runs_or_says_why_not() -> None:
    from tests.test_howto import RUN_PAGES

    pages = {str(command.page.relative_to(ROOT)) for command in COMMANDS}
    assert not pages - set(NOT_RUN) - set(RUN_PAGES)
    assert all((ROOT / name).exists() for name in (*NOT_RUN, *RUN_PAGES))
    assert not set(NOT_RUN) & set(RUN_PAGES)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, by the rule of GitHub."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures that are not addresses."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    return [a or b for a, b in found if not (a or b).startswith(("http://", "https://", "mailto:"))]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "commands.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_code_in_python_compiles() -> None:
    for page in PAGES:
        for block in code_blocks(page, "python"):
            compile(block, str(page), "exec")
