"""`geograft qgis`: install the QGIS plugin, a Processing provider that calls this program."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from geograft.errors import OutputError
from geograft.files import atomic_folder, translate_write_errors
from geograft.locks import lock_output

PLUGIN = "geograft_processing"
"""Name of the plugin's folder, which QGIS and `qgis_process plugins enable` call it by."""
COMMAND, METADATA = "command.json", "metadata.txt"
TITLE = "name=Geograft"
"""The line of metadata.txt by which an earlier installation is recognised."""


@dataclass(frozen=True)
class PluginFolder:
    """The result of `qgis`."""

    folder: Path
    command: tuple[str, ...]
    """How the plugin starts geograft."""

    def lines(self) -> list[str]:
        """Return where the plugin is, and how it is switched on, as plain text."""
        return [
            f"{self.folder}: the plugin, which starts {' '.join(self.command)}",
            "Restart QGIS and switch on Geograft under Plugins > Manage and Install Plugins > Installed,",
            f"or for qgis_process: qgis_process plugins enable {PLUGIN}",
        ]


def qgis(profile: str = "default") -> PluginFolder:
    """Install or update the QGIS plugin in a user profile: the name of the profile, or the path of its folder.

    Nothing is installed into QGIS's Python: the plugin starts this Python with geograft as a process.

    Raises:
        OutputError: if the profile does not exist, another plugin has the folder's name, or it cannot be written.
    """
    folder = find_profile(profile) / "python" / "plugins" / PLUGIN
    command = (sys.executable, "-m", "geograft")
    with translate_write_errors(folder), lock_output(folder):
        _remove_installed(folder)
        with atomic_folder(folder) as part:
            for file in files("geograft").joinpath("qgis_plugin").iterdir():
                if file.is_file():
                    (part / file.name).write_bytes(file.read_bytes())
            text = (part / METADATA).read_text(encoding="utf-8")
            installed = text.replace("version=0\n", f"version={version('geograft')}\n")
            (part / METADATA).write_text(installed, encoding="utf-8")
            (part / COMMAND).write_text(json.dumps(command) + "\n", encoding="utf-8")
    return PluginFolder(folder, command)


def find_profile(profile: str) -> Path:
    """Return the folder of a QGIS profile, given by its name or path.

    Raises:
        OutputError: if it does not exist.
    """
    given = Path(profile)
    folder = given if len(given.parts) > 1 else profiles_folder() / profile
    if not profile or not folder.is_dir():
        raise OutputError(
            f"{folder} is not a folder of a QGIS profile. Start QGIS once, which makes the profile default, or give "
            "the name or the folder of another with --profile (in QGIS: Settings > User Profiles)."
        )
    return folder


def profiles_folder() -> Path:
    """Return the folder in which QGIS 3 keeps the profiles of this user."""
    own = os.environ.get("QGIS_CUSTOM_CONFIG_PATH")
    if own:
        return Path(own) / "profiles"
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "QGIS" / "QGIS3" / "profiles"


def _remove_installed(folder: Path) -> None:
    """Remove an earlier installation.

    Raises:
        OutputError: if something else is there.
    """
    if not os.path.lexists(folder):
        return
    metadata = folder / METADATA
    is_plugin = not folder.is_symlink() and metadata.is_file()
    lines = metadata.read_text(encoding="utf-8", errors="replace").splitlines() if is_plugin else []
    if TITLE not in lines:
        raise OutputError(f"{folder} is not a plugin of geograft; nothing was changed. Rename or remove it.")
    shutil.rmtree(folder)
