"""Command-line flags generated from settings, and printing of results.

Each setting is described in one place: its field in geograft.config.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast, get_origin, get_type_hints, runtime_checkable

from cyclopts import Group, Parameter
from rich.console import Console

from geograft.config import ModelConfig, Recipe, StacConfig, TrainConfig, describe_value, load_recipe
from geograft.errors import SettingError
from geograft.geo.scene import RasterInput
from geograft.progress import json_progress, write_event

BandFiles = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)]
"""Lists of the files of scenes by band; each is an input like a raster."""


@runtime_checkable
class Printable(Protocol):
    """The result of a verb, as text."""

    def lines(self) -> list[str]:
        """Return the text, line by line."""


def print_result(result: Printable) -> None:
    """Print the result of a verb on stdout as plain text, and as JSON on stderr if progress is."""
    text = "\n".join(result.lines())
    if json_progress():
        write_event("result", exit_code=0, text=text)
    if text:  # nothing, where another process of a training prints the result
        Console(highlight=False, markup=False, soft_wrap=True).print(text)


Command = TypeVar("Command", bound=Callable[..., None])


def with_progress(command: Command) -> Command:
    """Decorate a command that takes long with the option --progress, which `geograft.cli.main` reads."""
    hints = get_type_hints(command, include_extras=True)
    parameters = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()]
    help_text = "text, or json for programs: one JSON object a line on stderr; closing standard input then cancels."
    annotation = Annotated[Literal["text", "json"], Parameter(help=help_text)]
    flag = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default="text", annotation=annotation)

    @wraps(command)
    def run(*args: Any, progress: str = "text", **options: Any) -> None:
        command(*args, **options)

    run.__signature__ = inspect.Signature([*parameters, flag])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*parameters, flag)}
    return cast(Command, run)


def settings(**tables: Any) -> Callable[[Command], Command]:
    """Decorate a command with one optional flag per field of each config class, passed to it in `**chosen`.

    A flag that is not given is None; the value then comes from the recipe or the default.
    """

    def wrap(command: Command) -> Command:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        hints = get_type_hints(command, include_extras=True)
        flags = [_flag(name, info, table) for table, config in tables.items() for name, info in _fields(config)]
        parameters = [*(p.replace(annotation=hints[p.name]) for p in own), *flags]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return wrap


def given_flags(config: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags in `chosen` that were given and are fields of `config`."""
    return {name: chosen[name] for name, _ in _fields(config) if chosen.get(name) is not None}


def recipe_from(path: Path | None, chosen: Mapping[str, Any]) -> Recipe:
    """Return the recipe at `path` (default: the default recipe) with the given flags applied."""
    return recipe_with(load_recipe(path) if path else Recipe(), chosen)


def recipe_with(recipe: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with the given flags applied."""
    return recipe.with_settings(model=given_flags(ModelConfig, chosen), train=given_flags(TrainConfig, chosen))


def config_from(config: Any, base: Any, chosen: Mapping[str, Any]) -> Any:
    """Return `base`, an instance of the class `config`, with the given flags applied.

    Raises:
        SettingError: for an invalid value.
    """
    from pydantic import ValidationError

    try:
        return config(**(asdict(base) | given_flags(config, chosen)))
    except ValidationError as error:
        name = str(next(iter(error.errors(include_url=False)[0]["loc"]), ""))
        flag = f"--{name.replace('_', '-')}" if name else ""
        raise SettingError(f"{describe_value(error, flag, ' {}')}.") from error


def stac_rasters(chosen: Mapping[str, Any]) -> tuple[RasterInput, ...]:
    """Return the rasters and scenes of a STAC catalogue that the flags of StacConfig ask for; none without --stac-url.

    Raises:
        InputError: as `geograft.commands.stac.find_assets`.
        SettingError: for an invalid value, or a choice without a catalogue.
    """
    search = config_from(StacConfig, StacConfig(), chosen)
    if search.stac_url:
        from geograft.commands.stac import find_assets

        return find_assets(search)
    if search != StacConfig():
        raise SettingError("--bbox, --datetime, --assets and the like choose from a STAC catalogue. Add --stac-url.")
    return ()


def _fields(config: Any) -> list[tuple[str, Any]]:
    return list(config.__pydantic_fields__.items())


def _flag(name: str, info: Any, table: str) -> inspect.Parameter:
    unset = "auto" if info.annotation == bool | None else "the run's"
    default = unset if info.default is None else info.default
    help_text = f"{' '.join(info.description.split())} [default: {default}]"
    several = True if get_origin(info.annotation) is tuple else None
    parameter = Parameter(help=help_text, group=Group(f"Settings: {table}"), consume_multiple=several)
    annotation = Annotated[info.annotation | None, parameter]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
