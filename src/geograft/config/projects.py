"""project.toml, the settings of a project folder: classes, images, and what differs from the defaults of each step."""

import tomllib
from collections import Counter
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from geograft.config.inference import EvaluateConfig, PolygonConfig, PredictConfig, SuggestConfig
from geograft.config.recipes import Recipe, describe_fault
from geograft.config.training import STRICT, ModelConfig, PrepareConfig, Seed, TrainConfig
from geograft.errors import InputError, SettingError
from geograft.memory import MAX_TILE_PX

PROJECT_FILE = "project.toml"
MAX_NAME = 100
"""Maximum length of the name of a class."""


@dataclass(frozen=True, config=STRICT)
class ProjectClass:
    """A class to map."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    """Its name: the value of the field class of labels."""
    colour: Annotated[str, Field(pattern="^#[0-9A-Fa-f]{6}$")]
    """Its colour in the GIS, #RRGGBB."""


@dataclass(frozen=True, config=STRICT)
class AreaConfig:
    """The areas at random places that are labelled to measure the accuracy of the map."""

    scoring_areas: Annotated[int, Field(ge=0, le=10_000)] = 12
    """Number of random scoring areas."""
    area_px: Annotated[int, Field(ge=16, le=MAX_TILE_PX)] = 128
    """Length of their sides in pixels."""
    seed: Seed = 0
    """Random seed of their positions."""


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
        return tomli_w.dumps({key: value for key, value in content.items() if value != {}}, multiline_strings=False)


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
