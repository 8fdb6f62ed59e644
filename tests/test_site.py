"""The documentation site is built without a warning, and every link in it leads to a page and an anchor."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import geograft

pytest.importorskip("sphinx", reason="the extra docs is not installed")
pytest.importorskip("myst_nb", reason="the extra docs is not installed")
pytest.importorskip("pydata_sphinx_theme", reason="the extra docs is not installed")


class Anchors(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        self.targets += [value for name in ("href", "src") if (value := values.get(name))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site") / "site"
    script = Path(__file__).parents[1] / "scripts" / "make_site.py"
    done = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_every_link_leads_to_a_page_and_an_anchor(site: Path) -> None:
    pages = {
        path: Anchors(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if "_static" not in path.parts
    }
    assert len(pages) > 40
    wrong = []
    for page, content in pages.items():
        for target in content.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages[path].ids | {"", "top"} if path in pages else {parts.fragment}
            if not path.exists() or unquote(parts.fragment) not in known:
                wrong.append(f"{page.relative_to(site)}: {target}")
    assert not wrong


@pytest.mark.slow
def test_the_reference_has_all_public_names_and_commands(site: Path) -> None:
    reference = Anchors((site / "reference.html").read_text(encoding="utf-8")).ids
    assert not {f"geograft.{name}" for name in geograft.__all__} - reference
    assert {"geograft.Run.predict", "geograft.TileSet.plot"} <= reference
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert "geograft prepare vector" in commands
    assert "--tile-px" in commands
