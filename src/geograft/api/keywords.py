"""Settings as keyword options of functions, generated from the config classes like the flags of the command line."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from pydantic import ValidationError

from geograft.config import describe_value
from geograft.errors import SettingError

Result = TypeVar("Result")


def keyword_settings(config: Any) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Replace the parameter `config` of a function by one keyword option per field of the class `config`.

    The options, their defaults and their descriptions are those of the fields; `help` shows them.

    The function raises:
        SettingError: for an invalid value.
        TypeError: for an option that does not exist.
    """
    fields = config.__pydantic_fields__

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        own = [p for name, p in inspect.signature(function).parameters.items() if name != "config"]
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info.default)
            for name, info in fields.items()
        ]

        @wraps(function)
        def call(*args: Any, **given: Any) -> Result:
            chosen = {name: given.pop(name) for name in fields if name in given}
            return function(*args, config=build_config(config, chosen), **given)

        call.__signature__ = inspect.signature(function).replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{_describe(fields)}\n"
        return call

    return decorate


def build_config(config: Any, chosen: Mapping[str, Any]) -> Any:
    """Return an instance of the class `config` with the chosen values.

    Raises:
        SettingError: for an invalid value.
    """
    try:
        return config(**chosen)
    except ValidationError as error:
        name = str(next(iter(error.errors(include_url=False)[0]["loc"]), ""))
        raise SettingError(f"{describe_value(error, name, ' = {!r}')}.") from error


def _describe(fields: Mapping[str, Any]) -> str:
    """Return one line for each option: the first sentence of its description."""
    sentences = ((name, " ".join(info.description.split()).split(". ")[0]) for name, info in fields.items())
    return "\n".join(f"    {name}: {sentence.rstrip('.')}." for name, sentence in sentences)
