"""What only POSIX systems have is in few places, and the package works where it is missing, as on Windows."""

import ast
import subprocess
import sys
from pathlib import Path

from tests.test_house import MODULES, SOURCE, imports

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "fork", "getuid", "killpg", "mkfifo", "O_NOFOLLOW", "pread", "pthread_sigmask", "pwrite", "register_at_fork",
    "sched_getaffinity", "SIGHUP", "SIGKILL", "statvfs", "uname", "wait", "waitpid",
}  # fmt: skip
"""Attributes of os and signal that Windows, and some of them macOS, lack."""
PLACES = {"locks.py", "cores.py", "interrupts.py"}
WITHOUT_POSIX = """
import os, pkgutil, signal, sys, tempfile
from importlib import import_module
from pathlib import Path
import geograft

names = [name for _, name, _ in pkgutil.walk_packages(geograft.__path__, "geograft.")]
names = [name for name in names if not name.startswith(("geograft.__main__", "geograft.qgis_plugin"))]
for name in names:  # other libraries are imported as they are on this system
    import_module(name)
for name in [name for name in sys.modules if name.startswith("geograft")]:
    del sys.modules[name]
for name in %r:
    sys.modules[name] = None
for module in (os, signal):
    for name in %r:
        if hasattr(module, name):
            delattr(module, name)

for name in names:
    import_module(name)
from geograft.cores import usable_cores
from geograft.interrupts import block_signals_in_children, handle_signals
from geograft.locks import lock_output

out = Path(tempfile.mkdtemp()) / "map.tif"
with lock_output(out), handle_signals(), block_signals_in_children():
    out.write_bytes(b"")
assert list(out.parent.iterdir()) == [out]
assert usable_cores() >= 1
print(len(names))
"""


def attributes(path: Path) -> set[str]:
    """Return the names of the attributes of os and signal that a module uses."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "signal")
    }


def test_only_locks_and_limits_import_what_only_posix_has() -> None:
    found = {str(path.relative_to(SOURCE)) for path in MODULES if POSIX_MODULES & set(imports(path))}
    assert found == {"locks.py", "cores.py"}
    used = {str(path.relative_to(SOURCE)) for path in MODULES if POSIX_NAMES & attributes(path)}
    assert used == PLACES


def test_no_module_forks() -> None:
    """Processes are started anew everywhere, so the tests of training and loading run as they do on Windows."""
    for path in MODULES:
        words = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not words & {"fork", "forkserver"}, path
        assert not {"set_start_method"} & attributes(path)


def test_the_package_works_without_posix() -> None:
    code = WITHOUT_POSIX % (sorted(POSIX_MODULES - {"posix"}), sorted(POSIX_NAMES))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
