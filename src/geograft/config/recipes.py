"""Recipes: a TOML file with the tables [prepare], [model], [train] and, for comparisons, `seeds` and [[variants]]."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from geograft.config.training import STRICT, ModelConfig, PrepareConfig, TrainConfig
from geograft.errors import SettingError

RECIPES_FOLDER = Path(__file__).parents[1] / "recipes"
"""The recipes that come with Geograft."""


@dataclass(frozen=True, config=STRICT)
class Variant:
    """One configuration of a comparison: a name, and what it changes in the recipe's [model] and [train]."""

    name: str
    """Name in tables and figures."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of [model] that differ."""
    train: dict[str, Any] = field(default_factory=dict)
    """Settings of [train] that differ."""


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """Everything that decides a run, in one file."""

    title: str = ""
    """One line on what the recipe is for."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seeds: tuple[int, ...] = (0,)
    """Seeds that a comparison trains every variant with."""
    variants: tuple[Variant, ...] = ()
    """The configurations that a comparison trains."""

    def with_settings(self, **tables: Mapping[str, Any]) -> "Recipe":
        """Return the recipe with some settings replaced: `recipe.with_settings(train={"epochs": 3})`.

        Raises:
            SettingError: for an unknown key or a value that cannot work, with its path.
        """
        content = asdict(self)
        for table, settings in tables.items():
            content[table] = {**content[table], **settings}
        return parse_recipe(content)

    def variant(self, variant: Variant, seed: int) -> "Recipe":
        """Return the recipe of one run of a comparison."""
        return self.with_settings(model=variant.model, train={**variant.train, "seed": seed})


def parse_recipe(content: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Return the recipe that nested `content` describes.

    Raises:
        SettingError: naming `origin` and the first setting at fault with its path.
    """
    try:
        recipe = TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise SettingError(f"{origin}: {_first_fault(error)}") from error
    for variant in recipe.variants:
        _check_variant(recipe, variant, origin)
    return recipe


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file; a bare name (`demo`, `article`) means one that comes with Geograft.

    Raises:
        SettingError: when the file is missing, is not TOML, or holds an unknown key or an impossible value.
    """
    shipped = RECIPES_FOLDER / f"{path}.toml"
    try:
        content = tomllib.loads((shipped if shipped.is_file() else path).read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(recipe.stem for recipe in RECIPES_FOLDER.glob("*.toml")))
        raise SettingError(f"{path}: {error.strerror}. Give a TOML file, or one of Geograft's: {names}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not a TOML file: {error}. See recipes/ for examples.") from error
    return parse_recipe(content, str(path))


def recipe_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML with every setting of [prepare], [model] and [train] spelled out, without variants."""
    lines = [f"title = {_toml(recipe.title)}", f"seeds = {list(recipe.seeds)}"]
    for table in ("prepare", "model", "train"):
        settings = asdict(getattr(recipe, table))
        lines += ["", f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in settings.items())]
    return "\n".join(lines) + "\n"


def _check_variant(recipe: Recipe, variant: Variant, origin: str) -> None:
    content = asdict(recipe) | {"variants": ()}
    content["model"], content["train"] = content["model"] | variant.model, content["train"] | variant.train
    try:
        TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise SettingError(f"{origin}: variant {variant.name!r}: {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} is not a setting. See `geograft train --help` and `geograft prepare --help` for all settings."
    return f"{where} = {fault['input']!r}: {fault['msg'][:1].lower()}{fault['msg'][1:]}."


def _toml(value: str | float | bool | Sequence[str]) -> str:
    # JSON's strings, numbers and booleans are TOML's, and so are lists of them.
    return json.dumps(value, ensure_ascii=False)
