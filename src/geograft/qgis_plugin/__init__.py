"""QGIS plugin: a Processing provider that calls `geograft`. Runs in QGIS's Python, without any package of geograft."""


def classFactory(iface):  # noqa: N802 (the name that QGIS calls)
    """Return the plugin; `iface` is QGIS's interface, None in qgis_process."""
    from .provider import Plugin  # noqa: PLC0415 (imports QGIS)

    return Plugin()
