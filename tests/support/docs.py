"""The commands and code blocks of documentation pages."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.name != "commands.md"
)
REMARK = re.compile(r"\s{2,}")
"""Two spaces separate a command from a remark on the same line."""


@dataclass(frozen=True)
class DocumentedCommand:
    """A `geograft` command of a page."""

    page: Path
    line: int
    arguments: tuple[str, ...]
    """Words after `geograft`."""

    @property
    def place(self) -> str:
        """The page and line, for test names."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def verb(self) -> str:
        """The name of the command."""
        return self.arguments[0]


def commands_of(page: Path) -> list[DocumentedCommand]:
    """Return the commands of a page in order: lines of code that start with `geograft`, with or without a prompt."""
    lines, found = page.read_text(encoding="utf-8").splitlines(), []
    for number, line in enumerate(lines, 1):
        match = (
            re.match(r"\s*(?:\$ )?geograft ((?:[a-z].*)?)$", line)
            if line.startswith(("    ", "geograft ", "$ "))
            else None
        )
        if not match:
            continue
        text, after = match[1], number
        while text.endswith("\\"):
            text, after = text[:-1] + lines[after].strip(), after + 1
        found.append(DocumentedCommand(page, number, tuple(shlex.split(REMARK.split(text.strip())[0]))))
    return found


def code_blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def expand_globs(arguments: Sequence[str], folder: Path) -> list[str]:
    """Return the arguments as a shell in `folder` would pass them: patterns with * become the names that match."""
    expanded = []
    for word in arguments:
        names = sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word[1:] else []
        expanded += names or [word]
    return expanded
