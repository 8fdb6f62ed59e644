"""Write docs/commands.md, the help of every command, from the program itself. `make docs` runs it; a test compares."""

import io
from pathlib import Path

from rich.console import Console

from geograft.cli import app

COMMANDS = (
    "prepare vector", "prepare masks", "prepare dstl", "audit", "model", "train", "compare", "curve", "find",
    "evaluate", "predict", "polygons", "suggest", "sample", "area", "report", "demo",
)  # fmt: skip
PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = """# Every command and every flag

Made by `make docs` from the program's own help. A flag that is not given leaves the recipe's value, or the default.
"""


def help_of(command: str) -> str:
    """Return what `geograft COMMAND --help` prints, 100 columns wide."""
    text = io.StringIO()
    console = Console(file=text, width=100, color_system=None, force_terminal=False)
    app([*command.split(), "--help"], console=console, result_action="return_value")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip()


def page() -> str:
    """Return the whole page."""
    return HEAD + "".join(f"\n## geograft {command}\n\n```\n{help_of(command)}\n```\n" for command in COMMANDS)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
