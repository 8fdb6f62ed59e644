"""Settings in TOML files: recipes, and project.toml of a project folder.

A recipe has the tables [prepare], [model] and [train] and, for comparisons, `seeds` and [[variants]]. A project has
classes, images, and what differs from the defaults of each step.
"""

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from geograft.config.inference import EvaluateConfig, PolygonConfig, PredictConfig, ServeConfig, SuggestConfig
from geograft.config.training import STRICT, Bands, ModelConfig, PrepareConfig, Seed, TrainConfig
from geograft.errors import InputError, SettingError
from geograft.memory import MAX_TILE_PX

RECIPES_FOLDER = Path(__file__).parents[1] / "recipes"
"""The recipes shipped with Geograft."""

SEE_HELP = "See `geograft train --help` and `geograft prepare --help` for all settings."

RENAMED_SETTINGS = {
    "train.entropy": 'train.pixel_loss ("ce" or "focal")',
    "train.region": "train.region_loss",
    "train.region_weight": "train.region_loss_weight",
    "train.tversky_miss": "train.tversky_beta",
}
"""Old names of settings and their new ones, for error messages; old names are not accepted."""


@dataclass(frozen=True, config=STRICT)
class Variant:
    """One configuration of a comparison, as changes to the recipe's [model] and [train]."""

    name: str
    """Name in tables and figures."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of [model] to change."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of [train] to change."""


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """All settings of a run, in one file."""

    title: str = ""
    """One-line description."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seeds: tuple[Seed, ...] = (0,)
    """Random seeds with which a comparison trains every variant."""
    variants: tuple[Variant, ...] = ()
    """Configurations of a comparison."""

    def with_settings(self, **tables: Mapping[str, Any]) -> "Recipe":
        """Return a copy with other settings: `recipe.with_settings(train={"epochs": 3})`.

        Raises:
            SettingError: for an unknown key or an invalid value, with its path.
        """
        content = asdict(self)
        for table, settings in tables.items():
            content[table] = {**content[table], **settings}
        return parse_recipe(content)

    def with_seeds(self, seeds: Sequence[int]) -> "Recipe":
        """Return a copy with other random seeds of a comparison; itself without any.

        Raises:
            SettingError: for a seed out of range.
        """
        return parse_recipe({**asdict(self), "seeds": tuple(seeds)}) if seeds else self

    def variant(self, variant: Variant, seed: int) -> "Recipe":
        """Return the recipe of one run of a comparison, with the settings of `variant` and its `seed`."""
        return self.with_settings(model=variant.model, train={**variant.train, "seed": seed})


def parse_recipe(content: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Return the recipe of nested `content`.

    Raises:
        SettingError: for an unknown key or an invalid value, with `origin` and its path.
    """
    try:
        recipe = TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise SettingError(f"{origin}: {_describe_setting_fault(error)} {SEE_HELP}") from error
    for variant in recipe.variants:
        _check_variant(recipe, variant, origin)
    return recipe


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe from a TOML file, or a shipped one by its name (`demo`, `article`).

    Raises:
        SettingError: if the file is missing, is not TOML, or has an unknown key or an invalid value.
    """
    path, shipped = Path(path), RECIPES_FOLDER / f"{path}.toml"
    try:
        if not shipped.is_file() and path.exists() and not path.is_file():
            raise SettingError(f"{path} is not a file. Give a TOML file or the name of a shipped recipe.")
        content = tomllib.loads((shipped if shipped.is_file() else path).read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(recipe.stem for recipe in RECIPES_FOLDER.glob("*.toml")))
        raise SettingError(f"{path}: {error.strerror}. Give a TOML file or a shipped recipe: {names}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not a TOML file: {error}. See recipes/ for examples.") from error
    return parse_recipe(content, str(path))


def recipe_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML, with every setting of [prepare], [model] and [train] but without variants.

    A setting that is left to Geograft (None) is left out.
    """
    keys = ("title", "seeds", "prepare", "model", "train")
    content = asdict(recipe)
    content["train"] = {name: value for name, value in content["train"].items() if value is not None}
    return tomli_w.dumps({key: content[key] for key in keys})


def describe_fault(error: ValidationError, renamed: Mapping[str, str] = RENAMED_SETTINGS) -> str:
    """Return the first fault of a validation as text; an old name in `renamed` comes first, with the new name."""
    faults = error.errors(include_url=False)
    keys = [".".join(str(part) for part in fault["loc"]) for fault in faults]
    for key in keys:
        if key in renamed:
            return f"{key} is now {renamed[key]}"
    fault, key = faults[0], keys[0]
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} is not a setting"
    if fault["type"].startswith("missing"):
        return f"{key} is missing"
    return describe_value(error, key, " = {!r}")


def describe_value(error: ValidationError, name: str, form: str) -> str:
    """Return the first fault of a validation as "NAME VALUE: reason", with the value written by `form`, as in " = {}".

    Reasons of Geograft's own checks are as they are; where they are about several values, none is shown.
    """
    fault = error.errors(include_url=False)[0]
    own = fault.get("ctx", {}).get("error") if fault["type"] == "value_error" else None
    reason = f"{fault['msg'][:1].lower()}{fault['msg'][1:]}" if own is None else str(own)
    value = "" if isinstance(fault["input"], (Mapping, ArgsKwargs)) else form.format(fault["input"])
    return f"{name}{value}: {reason}" if name else reason


def _describe_setting_fault(error: ValidationError) -> str:
    """Return the first fault of a recipe as text, with the setting that an unknown key may mean."""
    text = describe_fault(error)
    key, _, rest = text.partition(" ")
    if rest != "is not a setting":
        return f"{text}."
    tables = {"prepare": PrepareConfig, "model": ModelConfig, "train": TrainConfig}
    settings = [f"{table}.{item.name}" for table, config in tables.items() for item in fields(config)]
    name = key.rpartition(".")[2]
    elsewhere = [setting for setting in settings if setting.rpartition(".")[2] == name]
    similar = get_close_matches(name, [setting.rpartition(".")[2] for setting in settings], n=1)
    meant = elsewhere or [setting for setting in settings if setting.rpartition(".")[2] in similar]
    return f"{text}; did you mean {' or '.join(meant)}?" if meant else f"{text}."


def _check_variant(recipe: Recipe, variant: Variant, origin: str) -> None:
    content = asdict(recipe) | {"variants": ()}
    content["model"], content["train"] = content["model"] | variant.model, content["train"] | variant.train
    try:
        TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise SettingError(
            f"{origin}: variant {variant.name!r}: {_describe_setting_fault(error)} {SEE_HELP}"
        ) from error


# ------------------------------------------------------------------------------------------------------------ projects

PROJECT_FILE, LABEL_FILE = "project.toml", "labels.gpkg"
TILES, RUN, MAPS, SUGGESTED, IMAGES = "tiles", "run", "maps", "suggested.gpkg", "images"
QUICK, VIEWS = ".quick", ".views"
"""Names of files and folders in a project's folder."""
MAX_CLASS_NAME = 100
"""Maximum length of the name of a class."""


@dataclass(frozen=True, config=STRICT)
class ProjectClass:
    """A class to map."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_CLASS_NAME)]
    """Its name: the value of the field class of labels."""
    colour: Annotated[str, Field(pattern="^#[0-9A-Fa-f]{6}$")]
    """Its colour in the GIS, #RRGGBB."""


@dataclass(frozen=True, config=STRICT)
class AreaConfig:
    """The areas at random places that are labelled to measure the accuracy of the map."""

    scoring_areas: Annotated[int, Field(ge=0, le=10_000)] = 12
    """Number of random scoring areas."""
    area_px: Annotated[int, Field(ge=16, le=MAX_TILE_PX)] = 128
    """Length of the sides of the scoring areas in pixels."""
    seed: Seed = 0
    """Random seed of the positions of the scoring areas."""


@dataclass(frozen=True, config=STRICT)
class ImageConfig:
    """Which bands and pixels of the images are used."""

    bands: Bands = ()
    """Bands to use, by numbers counted from 1, or by names: own ones such as B04, common ones such as
    red,green,blue,nir. Default: all bands; of a scene with a file per band, all but those of quality."""
    mask: tuple[str, ...] = ()
    """Pixels to leave out, by a quality band: its name and values, such as scl:3,8,9,10, or its bits, such as
    qa_pixel:bits:1-4."""


@dataclass(frozen=True, config=STRICT)
class CopiedImage:
    """An image that `geograft project` wrote into the folder, and what it was made from."""

    image: str
    """Path of the copy."""
    source: str
    """Path or address of the scene or raster."""
    bands: Bands = ()
    """The bands that were chosen; empty: all."""
    mask: tuple[str, ...] = ()
    """The pixels that were left out."""


@dataclass(frozen=True, config=STRICT)
class ProjectSettings:
    """The content of project.toml."""

    title: str
    """Name of the project."""
    images: Annotated[tuple[str, ...], Field(min_length=1)]
    """Paths of the images; relative ones are relative to the folder of the project."""
    classes: Annotated[tuple[ProjectClass, ...], Field(min_length=1)]
    """The classes to map."""
    areas: AreaConfig = field(default_factory=AreaConfig)
    """How the random areas were drawn. Changes have no effect on areas that exist."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    """Settings of the tile set."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Settings of the network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Settings of the training."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """What is scored besides pixels."""
    predict: PredictConfig = field(default_factory=PredictConfig)
    """Settings of the maps."""
    polygons: PolygonConfig = field(default_factory=PolygonConfig)
    """Settings of the polygons."""
    suggest: SuggestConfig = field(default_factory=SuggestConfig)
    """Settings of the suggestions."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    """What `geograft serve` shows beside the layers of the project."""
    copies: tuple[CopiedImage, ...] = ()
    """What the images in the folder were made from: scenes and remote rasters. For information only."""

    def __post_init__(self) -> None:
        names = Counter(each.name for each in self.classes)
        double = next((name for name, count in names.items() if count > 1), None)
        if double is not None:
            raise ValueError(f"the class {double} is given twice")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(each.name for each in self.classes)

    @property
    def recipe(self) -> Recipe:
        """The settings of tile set, network and training as a recipe."""
        return Recipe(title=self.title, prepare=self.prepare, model=self.model, train=self.train)

    def toml(self) -> str:
        """Return the content of project.toml: only settings that differ from their defaults."""
        content = asdict(self)
        defaults = asdict(ProjectSettings(self.title, self.images, self.classes))
        for table, values in content.items():
            if isinstance(values, dict) and table != "areas":
                content[table] = {key: value for key, value in values.items() if value != defaults[table][key]}
        content = {key: value for key, value in content.items() if value not in ({}, ())}
        return tomli_w.dumps(content, multiline_strings=False)


def read_project(folder: Path) -> tuple[ProjectSettings, frozenset[str]]:
    """Return the settings of a project folder, and the names of the settings of [model] and [train] that it has.

    Raises:
        InputError: if the folder has no project.toml, or it cannot be read.
        SettingError: if it is not TOML, or has an unknown key or an invalid value.
    """
    path = folder / PROJECT_FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = TypeAdapter(ProjectSettings).validate_python(content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{folder} is not a project: it has no {PROJECT_FILE}. Give the folder that `geograft project` made."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not a TOML file: {error}. Correct it, or make the project again.") from error
    except ValidationError as error:
        raise SettingError(f"{path}: {describe_fault(error)}. Correct it; docs/project.md lists the keys.") from error
    return settings, frozenset(key for table in ("model", "train") for key in _keys(content.get(table)))


def _keys(table: Any) -> tuple[str, ...]:
    return tuple(table) if isinstance(table, dict) else ()
