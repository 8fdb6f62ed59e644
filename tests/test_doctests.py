"""The examples in docstrings are true."""

import doctest
from importlib import import_module
from pathlib import Path

import geograft

SOURCE = Path(geograft.__file__).parent


def test_examples_in_docstrings_are_true() -> None:
    paths = [path for path in sorted(SOURCE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    names = [".".join(("geograft", *path.relative_to(SOURCE).with_suffix("").parts)) for path in paths]
    results = {name: doctest.testmod(import_module(name.removesuffix(".__init__"))) for name in names}
    assert sum(result.attempted for result in results.values()) > 40
    assert not [name for name, result in results.items() if result.failed]
