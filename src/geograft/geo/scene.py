"""Scenes that are delivered as one file per band: their bands by name, which are used, and which pixels are not.

A band has its own name (B04, SR_B4, the key of a STAC asset) and a common one (red), as in the eo extension of STAC.
Nothing here opens a file: `geograft.geo.scene_layouts` finds the files, `geograft.geo.rasters.scene_image` reads them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from geograft.errors import InputError, SettingError
from geograft.files import StrPath
from geograft.locations import Place, to_place
from geograft.text import join_names

SENTINEL2 = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge071", "B06": "rededge075",
    "B07": "rededge078", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B10": "cirrus", "B11": "swir16",
    "B12": "swir22",
}  # fmt: skip
"""Common names of Sentinel-2's bands, in the order of the band numbers in its metadata."""
LANDSAT_TM = {
    "SR_B1": "blue", "SR_B2": "green", "SR_B3": "red", "SR_B4": "nir08", "SR_B5": "swir16", "SR_B7": "swir22",
    "ST_B6": "lwir",
}  # fmt: skip
"""Common names of the bands of Landsat 4, 5 and 7 (TM, ETM+), Level 2."""
LANDSAT_OLI = {
    "SR_B1": "coastal", "SR_B2": "blue", "SR_B3": "green", "SR_B4": "red", "SR_B5": "nir08", "SR_B6": "swir16",
    "SR_B7": "swir22", "ST_B10": "lwir11",
}  # fmt: skip
"""Common names of the bands of Landsat 8 and 9 (OLI, TIRS), Level 2."""
OTHER_NAMES = {"rededge1": "rededge071", "rededge2": "rededge075", "rededge3": "rededge078"}
"""Common names by names that some catalogues use."""
THERMAL = frozenset({"lwir", "lwir11", "lwir12"})
MEASURED = {*SENTINEL2.values(), *LANDSAT_OLI.values(), *LANDSAT_TM.values()}
REFLECTIVE = frozenset(MEASURED - THERMAL | {"green05", "yellow", "rededge", "pan"})
"""Common names of bands of reflectance."""
SUBSTITUTES = {"nir": "nir08"}
"""The common name that is used where a scene has none of the other: Landsat has only a narrow near infrared."""
QUALITY = frozenset({"scl", "qa_pixel", "qa_radsat", "qa", "sr_qa_aerosol", "sr_atmos_opacity", "sr_cloud_qa", "st_qa",
                     "aot", "wvp", "cloud", "snow", "cld", "snw"})  # fmt: skip
"""Names of bands that are no input unless they are asked for."""
REFLECTANCE_UNIT, KELVIN_UNIT = 1e-4, 0.01
"""What a pixel value of 1 is in a band whose metadata have a scale: reflectance, or temperature in kelvin."""


@dataclass(frozen=True)
class BandFile:
    """One band of a scene: a band of a raster, and what its pixel values are."""

    names: tuple[str, ...]
    """Its own name first, then its common name if it has one, and further ones."""
    place: Place
    number: int = 1
    """The band in the file, counted from 1."""
    scale: float | None = None
    """Value in units of REFLECTANCE_UNIT or KELVIN_UNIT = pixel * scale + offset; None: pixels are used as they are."""
    offset: float = 0.0
    nodata: float | None = None
    """Pixel value of missing pixels, besides the file's own."""
    container: Path | None = None
    """The archive that the file is in."""

    @property
    def is_quality(self) -> bool:
        """Whether the band tells about pixels and is no measurement to map from."""
        return any(name.casefold() in QUALITY for name in self.names)

    def has_name(self, name: str) -> bool:
        """Return whether this is one of the band's names, regardless of case."""
        return name.casefold() in (own.casefold() for own in self.names)


def scaled_band(band: BandFile, scale: float, offset: float) -> BandFile:
    """Return a band with the scale and offset of its metadata, pixel * scale + offset, in reflectance or kelvin.

    Bands that are neither stay as they are.
    """
    names = {name.casefold() for name in band.names}
    unit = REFLECTANCE_UNIT if names & REFLECTIVE else KELVIN_UNIT if names & THERMAL else None
    if unit is None:
        return band
    return replace(band, scale=scale * round(1 / unit), offset=offset * round(1 / unit))


@dataclass(frozen=True)
class MaskRule:
    """Which values of a quality band are of pixels that are not used."""

    name: str
    values: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()
    """Bits, counted from 0, of which any is set in such pixels."""


MAX_MASK_VALUES, MAX_BIT = 4096, 31


def parse_mask(text: str) -> MaskRule:
    """Parse `NAME:VALUES` or `NAME:bits:NUMBERS`, each a list of numbers and ranges.

    >>> parse_mask("scl:3,8-10"), parse_mask("qa_pixel:bits:1-4").bits
    (MaskRule(name='scl', values=(3, 8, 9, 10), bits=()), (1, 2, 3, 4))

    Raises:
        SettingError: for another form.
    """
    name, _, rest = (part.strip() for part in text.partition(":"))
    as_bits = rest.casefold().startswith("bits:")
    numbers = _numbers(rest.partition(":")[2] if as_bits else rest)
    if not name or not numbers or (as_bits and max(numbers) > MAX_BIT):
        raise SettingError(
            f"--mask {text!r} cannot be parsed. Give a band and the values to leave out, such as scl:3,8,9,10, or its "
            "bits, such as qa_pixel:bits:1-4."
        )
    return MaskRule(name, bits=numbers) if as_bits else MaskRule(name, numbers)


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as 3,8-10, sorted; empty for another form."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?\s*", part)
        if match is None:
            return ()
        first, last = int(match[1]), int(match[2] or match[1])
        found.update(range(first, last + 1))
        if first > last or len(found) > MAX_MASK_VALUES:
            return ()
    return tuple(sorted(found))


@dataclass(frozen=True)
class BandChoice:
    """Which bands of an image are used, and how."""

    bands: tuple[int | str, ...] = ()
    """Names, or numbers counted from 1, in order; empty: all."""
    masks: tuple[str, ...] = ()
    """Pixels that are not used, see `parse_mask`."""
    resolution_m: float = 0.0
    """Pixel size in metres to which bands are resampled; 0: that of the finest band in use."""

    @property
    def changes_pixels(self) -> bool:
        """Whether an ordinary raster must be read as a scene."""
        return bool(self.masks or self.resolution_m)


ALL_BANDS = BandChoice()


@dataclass(frozen=True)
class Scene:
    """The bands of a scene that are used, in order."""

    place: Place
    bands: tuple[BandFile, ...]
    band_names: tuple[str, ...]
    """The names by which they were chosen."""
    masks: tuple[tuple[BandFile, MaskRule], ...] = ()
    resolution_m: float = 0.0
    acquired: str = ""
    """Date, or date and time, of acquisition in ISO 8601; empty if unknown."""


@dataclass(frozen=True)
class SceneFiles:
    """All bands of a scene."""

    place: Place
    """What was given: a folder, an archive, a STAC item."""
    bands: tuple[BandFile, ...]
    """Where several have a name, the first is meant."""
    acquired: str = ""

    def __str__(self) -> str:
        return str(self.place)

    def select(self, choice: BandChoice) -> Scene:
        """Return the bands of a choice; without one, all but those of quality.

        Raises:
            InputError: if the scene lacks one of them, or has no band.
            SettingError: if a mask cannot be parsed.
        """
        rules = [parse_mask(text) for text in choice.masks]
        masks = tuple((self._find(rule.name, "--mask"), rule) for rule in rules)
        wanted = choice.bands or tuple(self._inputs(rules))
        if not wanted:
            raise InputError(f"{self.place} has no band to use. Choose some with --bands: {self._listing()}.")
        bands = tuple(self._find(band, "--bands") for band in wanted)
        names = tuple(
            one if isinstance(one, str) else _shown_name(band) for one, band in zip(wanted, bands, strict=True)
        )
        return Scene(self.place, bands, names, masks, choice.resolution_m, self.acquired)

    def _inputs(self, rules: Iterable[MaskRule]) -> list[str]:
        """Return the names of all bands except those of quality, each once."""
        masks = {rule.name.casefold() for rule in rules}
        names = [
            _shown_name(band)
            for band in self.bands
            if not band.is_quality and not masks & {name.casefold() for name in band.names}
        ]
        return list(dict.fromkeys(names))

    def _find(self, wanted: int | str, flag: str) -> BandFile:
        if isinstance(wanted, int):
            if 1 <= wanted <= len(self.bands):
                return self.bands[wanted - 1]
        elif found := find_band(self.bands, wanted):
            return found
        raise InputError(f"{self.place} has no band {wanted} ({flag}). It has {self._listing()}.")

    def _listing(self) -> str:
        return join_names(dict.fromkeys("/".join(band.names[:2]) for band in self.bands)) or "none"


RasterInput: TypeAlias = Place | SceneFiles
"""What a map is made of: a raster or a scene by its path or address, or the bands of a scene that were found."""


def to_inputs(given: "StrPath | RasterInput | Sequence[StrPath | RasterInput]") -> tuple[RasterInput, ...]:
    """Return one raster or several, paths and addresses as by `to_place`."""
    several = given if isinstance(given, tuple | list) else (given,)
    return tuple(one if isinstance(one, SceneFiles) else to_place(one) for one in several)


def place_of(image: RasterInput) -> Place:
    """Return where a raster or a scene is, for messages and the names of outputs."""
    return image.place if isinstance(image, SceneFiles) else image


def find_band(bands: Sequence[BandFile], name: str) -> BandFile | None:
    """Return the band whose own name this is, otherwise the first that is also called so; None without one."""
    own = [band for band in bands if band.names[0].casefold() == name.casefold()]
    found = own or [band for band in bands if band.has_name(name)]
    if not found and name.casefold() in SUBSTITUTES:
        return find_band(bands, SUBSTITUTES[name.casefold()])
    return found[0] if found else None


def _shown_name(band: BandFile) -> str:
    known = REFLECTIVE | THERMAL
    return next((name for name in band.names if name.casefold() in known and name != "rededge"), band.names[0])


def band_numbers(wanted: Sequence[int | str], names: Sequence[str], path: Place) -> tuple[int, ...]:
    """Return the numbers, counted from 1, of bands of a raster that are chosen by number or by description.

    Raises:
        InputError: if a name is of no band, or of several.
    """
    own = [name.strip().casefold() for name in names]
    numbers = []
    for band in wanted:
        if isinstance(band, int):
            numbers.append(band)
            continue
        found = [number for number, name in enumerate(own, start=1) if name == band.casefold()]
        if len(found) != 1:
            count = "no band" if not found else f"{len(found)} bands"
            listed = ", ".join(f"{number} {name}" for number, name in enumerate(names, start=1))
            raise InputError(f"{path} has {count} called {band}; its bands are {listed}. Choose by number.")
        numbers.append(found[0])
    return tuple(numbers)


def only_numbers(bands: Iterable[int | str]) -> tuple[int, ...]:
    """Return bands that are chosen by number; those of a tile set are.

    Raises:
        ValueError: if one is chosen by name.
    """
    numbers = tuple(band for band in bands if isinstance(band, int))
    if names := [band for band in bands if isinstance(band, str)]:
        raise ValueError(f"bands are numbers here, not names such as {names[0]!r}")
    return numbers


def is_named(bands: Iterable[int | str]) -> bool:
    """Return whether any band is chosen by name."""
    return any(isinstance(band, str) for band in bands)


def files_of_raster(path: Place, names: Sequence[str]) -> SceneFiles:
    """Return the bands of an ordinary raster as those of a scene; bands without a name are called "band N"."""
    bands = tuple(BandFile((name,), path, number) for number, name in enumerate(names, start=1))
    return SceneFiles(path, bands)
