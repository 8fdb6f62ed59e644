"""What `make quick` selects, and what `make lint` finds in words."""

from pathlib import Path

import pytest
from scripts.check_words import phrases_in, tracked_files
from scripts.quick import ROOT, selected_tests


def names(changed: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in selected_tests({ROOT / changed})}


def test_a_changed_module_selects_its_tests_and_those_of_its_importers() -> None:
    selected = names("src/geograft/mapping/batches.py")
    assert {"tests/mapping/test_batches.py", "tests/mapping/test_blend.py"} <= selected
    assert "tests/geo/test_grid.py" not in selected


def test_a_changed_test_file_selects_itself_and_text_selects_nothing() -> None:
    assert names("tests/geo/test_measure.py") == {"tests/geo/test_measure.py"}
    assert names("README.md") == set()


def test_changed_support_selects_the_tests_that_import_it() -> None:
    assert "tests/mapping/test_blend.py" in names("tests/support/blending.py")


@pytest.mark.parametrize(
    "text", ["the running mean of the weights", "Shares of classes", "a map in the making", "LEAST_PX = 3", "The feed"]
)
def test_a_planted_phrase_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("scripts.check_words.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(f"fine\n{text}\n", encoding="utf-8")
    (line,) = phrases_in(tmp_path / "page.md")
    assert line.startswith("page.md:2: ")


def test_all_text_files_are_checked() -> None:
    files = {str(path.relative_to(ROOT)) for path in tracked_files()}
    assert {"README.md", "Makefile", "src/geograft/cli/__init__.py", "DESIGN.md"} <= files
