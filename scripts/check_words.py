"""Check that the repository speaks the field's language: none of the phrases below, outside LOG.md and CHANGELOG.md.

python scripts/check_words.py [PATH ...]

Prints a line for each phrase found and exits with 1 if there is any. `make lint` runs it on all tracked text files.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXEMPT = {"LOG.md", "CHANGELOG.md", "scripts/check_words.py", "tests/test_scripts.py"}
SUFFIXES = (".py", ".md", ".toml", ".jinja", ".css", "Makefile")
PHRASES = {
    r"running mean of (the|its|a network's) weights": "EMA of the weights",
    r"number format": "dtype or precision",
    r"in the making": "in progress, partial",
    r"no place on the ground": "not georeferenced",
    r"gone? on with|goes on (where|from|after)|going on": "resume",
    r"coarser (maps|outputs)": "auxiliary outputs",
    r"least validation loss": "lowest validation loss",
    r"culprits?": "tiles with a non-finite loss",
    r"\bcrew\b": "process group",
    r"\bdoubts?\b": "uncertainty",
    r"mean and deviation": "mean and standard deviation",
    r"order in memory": "memory format",
    r"(is|was|are|were|be|the loss) no number\b": "NaN or infinite",
    r"\bbegun\b|misunderstood": "read_ledger, corrupt",
    r"made (small|anew)\b": "minimised, recomputed",
    r"stands? still": "frozen",
    r"turns and flips": "flips and rotations",
    r"\bthe feed\b": "the data loader",
    r"\bspill(s|ed)?\b": "carry-over",
    r"\bshares? of\b": "fraction or proportion of",
    r"drawn by hand": "what the labels really are",
    r"95 % intervals?\b": "95 % confidence interval",
    r"resembles? (itself|themselves|each other)": "spatial autocorrelation",
    r"\bLEAST_|\bMOST_": "MIN_, MAX_",
}


def tracked_files() -> list[Path]:
    """Return the repository's text files."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if name.endswith(SUFFIXES)]


def phrases_in(path: Path) -> list[str]:
    """Return a line for each phrase found in a file: where, what, and the usual term."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{path.relative_to(ROOT)}:{number}: {found[0]!r}: say {term}"
        for number, line in enumerate(lines, 1)
        for phrase, term in PHRASES.items()
        for found in [re.search(phrase, line, re.IGNORECASE if phrase.islower() else 0)]
        if found
    ]


def main() -> int:
    """Print what is found in the files given, or in all; return 1 if there is anything."""
    given = [path for name in sys.argv[1:] for path in _files(Path(name).resolve())]
    files = [path for path in given or tracked_files() if path.is_file() and str(path.relative_to(ROOT)) not in EXEMPT]
    found = [line for path in files for line in phrases_in(path)]
    print("\n".join(found))
    return 1 if found else 0


def _files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.name.endswith(SUFFIXES)) if path.is_dir() else [path]


if __name__ == "__main__":
    sys.exit(main())
