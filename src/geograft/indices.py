"""Spectral indices: arithmetic on the bands of an image, computed per pixel on reading and appended as bands.

A formula consists of + - * / and parentheses, numbers, and bands by number (b1, b2, ...) or name. It is parsed with
`ast` and evaluated here; it is never executed as code. A parsed index refers to bands by number only, since other
images of the same sensor may name them differently.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Shaped
from numpy import ndarray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from geograft.errors import SettingError

MAX_CHARACTERS, MAX_DEPTH = 300, 50
"""Maximum length of a formula and maximum nesting depth of its parentheses and signs."""
MAX_NUMBER = 1e30
"""Numbers in a formula must be below this."""
NAME = re.compile(r"[^\W\d]\w*")
BAND_NUMBER = re.compile(r"b([1-9]\d{0,3})")
FORBIDDEN = re.compile(r"[^\w\s.+\-*/()]")
ALLOWED = "a formula consists of + - * / and parentheses, numbers and bands"

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Index:
    """A spectral index; its formula names the bands b1, b2, ..."""

    name: str
    """Name of the resulting band."""
    formula: str
    """Arithmetic on the bands, in units of the images."""

    def __post_init__(self) -> None:
        for node in _names(_parsed(self.formula)):
            if not BAND_NUMBER.fullmatch(node.id):
                raise ValueError(f"formula {self.formula!r}: {node.id} is not a band. Bands are b1, b2, ...")

    @property
    def last_band(self) -> int:
        """The highest band number in the formula."""
        return max(_number(node) for node in _names(_parsed(self.formula)))

    def compute(self, bands: Shaped[ndarray, "b h w"]) -> Float32[ndarray, "h w"]:
        """Return the index of every pixel, NaN where it is not finite (0/0). Computed in float64."""
        with np.errstate(all="ignore"):
            # Numbers are NumPy scalars: division by zero gives inf, where a Python float would raise.
            found: ndarray = self.evaluate(lambda band: bands[band - 1].astype(np.float64), np.float64)
            found = found.astype(np.float32)
        found[~np.isfinite(found)] = np.nan
        return found

    def evaluate(self, band: Callable[[int], Any], number: Callable[[float], Any]) -> Any:
        """Return the value of the formula for operands of any library.

        `band` returns the operand of a band, counted from 1, and `number` that of a number. They have Python's
        arithmetic operators.
        """
        return _value(_parsed(self.formula), band, number)


def parse_index(text: str, band_names: Sequence[str]) -> Index:
    """Parse `NAME=FORMULA` for images with the bands `band_names`.

    Names take precedence over numbers and are case-sensitive: with the bands B2, B3, B4 and B8, B4 is the third band,
    and b4 is rejected as ambiguous.

    >>> parse_index("ndvi=(nir-b1)/(nir+b1)", ("red", "nir")).formula
    '(b2 - b1) / (b2 + b1)'

    Raises:
        SettingError: for an invalid name or formula, with the position of the error.
    """
    name, separator, formula = (part.strip() for part in text.partition("="))
    try:
        if not separator or not NAME.fullmatch(name):
            raise ValueError("give a name and a formula, as in ndvi=(b4-b3)/(b4+b3)")
        if BAND_NUMBER.fullmatch(name) or name in band_names:
            raise ValueError(f"{name} is a band already; give the index another name")
        tree = _parse(formula)
        for node in _names(tree):
            node.id = f"b{_band(node.id, band_names)}"
        return Index(name, ast.unparse(tree))
    except ValueError as error:
        raise SettingError(f"--index {text!r}: {error}.") from error


def parse_indices(texts: Sequence[str], band_names: Sequence[str]) -> tuple[Index, ...]:
    """Parse several `NAME=FORMULA` texts with `parse_index`.

    Raises:
        SettingError: as `parse_index`, and for duplicate names.
    """
    indices = tuple(parse_index(text, band_names) for text in texts)
    names = [index.name for index in indices]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise SettingError(f"--index defines {double} twice. Give each index its own name.")
    return indices


def check_indices(indices: Sequence[Index], bands: int) -> None:
    """Raise ValueError if an index uses a band beyond the number of `bands`."""
    for index in indices:
        if index.last_band > bands:
            raise ValueError(f"{index.name} = {index.formula} uses a band beyond the last, b{bands}")


def append_indices(
    pixels: Shaped[ndarray, "b h w"], valid: Bool[ndarray, "h w"], indices: Sequence[Index]
) -> Shaped[ndarray, "c h w"]:
    """Return the bands followed by the indices, as float32; without indices, `pixels` itself.

    Indices are 0 in invalid pixels, and may be NaN (undefined) in valid ones.
    """
    if not indices:
        return pixels
    found = np.empty((len(pixels) + len(indices), *valid.shape), np.float32)
    found[: len(pixels)] = pixels
    for band, index in zip(found[len(pixels) :], indices, strict=True):
        band[:] = np.where(valid, index.compute(pixels), 0)
    return found


def fill_missing(image: Shaped[ndarray, "c h w"], values: Sequence[float]) -> Shaped[ndarray, "c h w"]:
    """Replace NaN in the last bands of `image` by `values`, one per band, in place; returns `image`."""
    for band, value in zip(image[len(image) - len(values) :], values, strict=True):
        band[np.isnan(band)] = value
    return image


def _parse(formula: str) -> ast.expr:
    """Return the syntax tree of a formula; raise ValueError with the position of anything that is not allowed."""
    text = " ".join(formula.split())
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the formula has {len(text)} characters, the maximum is {MAX_CHARACTERS}")
    strange = FORBIDDEN.search(text)
    if strange:
        raise ValueError(f"{strange[0]!r} at character {strange.start() + 1} of the formula is not allowed: {ALLOWED}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for example on 1if; the error below is clearer
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{error.msg} at character {error.offset} of the formula: {ALLOWED}") from error
    except (MemoryError, RecursionError) as error:
        raise ValueError("the formula nests too deeply") from error
    _check(tree, text)
    return tree


_parsed = lru_cache(maxsize=256)(_parse)


def _check(tree: ast.expr, text: str) -> None:
    for node, depth in _nodes(tree):
        if not _allowed(node):
            piece = ast.get_source_segment(text, node) or text
            place = len(text.encode()[: node.col_offset].decode()) + 1
            raise ValueError(f"{piece!r} at character {place} of the formula is not allowed: {ALLOWED}")
        if depth > MAX_DEPTH:
            raise ValueError(f"the formula nests more than {MAX_DEPTH} deep")
    if not _names(tree):
        raise ValueError("the formula uses no band")


def _allowed(node: ast.expr) -> bool:
    match node:
        case ast.BinOp():
            return type(node.op) in OPERATORS
        case ast.UnaryOp():
            return type(node.op) in SIGNS
        case ast.Constant():
            value = node.value
            return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
        case _:
            return isinstance(node, ast.Name)


def _nodes(tree: ast.expr) -> Iterator[tuple[ast.expr, int]]:
    """Yield the nodes of a formula and their depth, left to right; operands of other node types are not visited."""
    waiting = [(tree, 1)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        if isinstance(node, ast.BinOp):
            waiting += [(node.right, depth + 1), (node.left, depth + 1)]
        elif isinstance(node, ast.UnaryOp):
            waiting.append((node.operand, depth + 1))


def _names(tree: ast.expr) -> list[ast.Name]:
    return [node for node, _ in _nodes(tree) if isinstance(node, ast.Name)]


def _number(node: ast.Name) -> int:
    return int(node.id[1:])


def _band(name: str, band_names: Sequence[str]) -> int:
    """Return the number of the band that `name` refers to; raise ValueError if it is unknown or ambiguous."""
    numbered = BAND_NUMBER.fullmatch(name)
    called = [own.casefold() if numbered else own for own in band_names]
    meant = {number for number, own in enumerate(called, start=1) if own == name}
    if numbered and int(numbered[1]) <= len(band_names):
        meant.add(int(numbered[1]))
    if len(meant) == 1:
        return meant.pop()
    if meant:
        these = " or ".join(f"b{number} ({band_names[number - 1]})" for number in sorted(meant))
        raise ValueError(f"{name} is ambiguous: {these}. Use an unambiguous name or number")
    known = ", ".join(f"b{i} {own}" for i, own in enumerate(band_names, start=1))
    raise ValueError(f"{name} is not a band. The bands are: {known}")


def _value(node: ast.expr, band: Callable[[int], Any], number: Callable[[float], Any]) -> Any:
    match node:
        case ast.BinOp():
            return OPERATORS[type(node.op)](_value(node.left, band, number), _value(node.right, band, number))
        case ast.UnaryOp():
            return SIGNS[type(node.op)](_value(node.operand, band, number))
        case ast.Name():
            return band(_number(node))
        case ast.Constant():
            return number(node.value)  # type: ignore[arg-type]  # `_check` admits only numbers
        case _:
            raise AssertionError(ast.dump(node))
