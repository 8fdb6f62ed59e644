"""Two processes with one output: the second is refused by name, the first ends with the same bytes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.test_predict import left_in

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and flock")


def bytes_in(folder: Path) -> dict[str, bytes]:
    """Return the content of each file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("command", "output"), [("predict", "map.tif"), ("prepare", "tiles")])
def test_the_second_process_is_refused_and_the_first_is_undisturbed(tmp_path: Path, command: str, output: str) -> None:
    raced = subprocess.run(
        [sys.executable, "-m", "tests.support.race", tmp_path, command],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert raced.returncode == 0, raced.stderr
    first, error = raced.stdout.splitlines()
    assert re.search(rf"{re.escape(str(tmp_path / 'race' / output))} .*process {first};", error)
    assert bytes_in(tmp_path / "race") == bytes_in(tmp_path / "alone")
    assert left_in(tmp_path / "race") == {output}
