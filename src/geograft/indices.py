"""Spectral indices: arithmetic on the bands of an image, computed pixel by pixel when it is read, as further bands.

A formula holds + - * / and parentheses, numbers, and bands: b1, b2, ... in their order, or by their names. It is read
by Python's own parser and then walked by this module; nothing of it is run as code. What is kept names bands by number
alone, for other images of the same sensor may call them differently.
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

MOST_CHARACTERS, MOST_DEPTH = 300, 50
"""Longest formula, and how deep its parentheses and signs may nest."""
LARGEST = 1e30
"""Numbers in a formula are smaller than this."""
NAME = re.compile(r"[^\W\d]\w*")
NUMBERED = re.compile(r"b([1-9]\d{0,3})")
STRANGE = re.compile(r"[^\w\s.+\-*/()]")
ALLOWED = "a formula holds + - * / and parentheses, numbers and bands"

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Index:
    """One index: its name and its formula, in which bands are b1, b2, ..."""

    name: str
    """Name of the band that it makes."""
    formula: str
    """Arithmetic on the bands of the image, in the images' own units."""

    def __post_init__(self) -> None:
        for node in _names(_parsed(self.formula)):
            if not NUMBERED.fullmatch(node.id):
                raise ValueError(f"formula {self.formula!r}: {node.id} is no band; they are b1, b2, ...")

    @property
    def last_band(self) -> int:
        """The highest band that the formula names."""
        return max(_number(node) for node in _names(_parsed(self.formula)))

    def of(self, bands: Shaped[ndarray, "b h w"]) -> Float32[ndarray, "h w"]:
        """Return the index of every pixel, NaN where it is no finite number (0/0). Computed in 64 bits."""
        with np.errstate(all="ignore"):
            found: ndarray = _value(_parsed(self.formula), bands).astype(np.float32)
        found[~np.isfinite(found)] = np.nan
        return found


def index_of(text: str, band_names: Sequence[str]) -> Index:
    """Return the index that `NAME=FORMULA` describes, for images whose bands are called `band_names`.

    A name counts before a number, and the case of its letters counts: in an image of the bands B2, B3, B4 and B8, B4 is
    the third, and b4, which could be either of two, is refused.

    >>> index_of("ndvi=(nir-b1)/(nir+b1)", ("red", "nir")).formula
    '(b2 - b1) / (b2 + b1)'

    Raises:
        SettingError: pointing at what is wrong.
    """
    name, separator, formula = (part.strip() for part in text.partition("="))
    try:
        if not separator or not NAME.fullmatch(name):
            raise ValueError("give a name and a formula, as in ndvi=(b4-b3)/(b4+b3)")
        if NUMBERED.fullmatch(name) or name in band_names:
            raise ValueError(f"{name} is a band already; give the index another name")
        tree = _parse(formula)
        for node in _names(tree):
            node.id = f"b{_band(node.id, band_names)}"
        return Index(name, ast.unparse(tree))
    except ValueError as error:
        raise SettingError(f"--index {text!r}: {error}.") from error


def indices_of(texts: Sequence[str], band_names: Sequence[str]) -> tuple[Index, ...]:
    """Return the indices that several texts describe, as `index_of` does each.

    Raises:
        SettingError: as `index_of`, and when two share a name.
    """
    indices = tuple(index_of(text, band_names) for text in texts)
    names = [index.name for index in indices]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise SettingError(f"--index names {double} twice. Give each index a name of its own.")
    return indices


def check_indices(indices: Sequence[Index], bands: int) -> None:
    """Raise ValueError when an index names a band that images of `bands` bands have not."""
    for index in indices:
        if index.last_band > bands:
            raise ValueError(f"{index.name} = {index.formula} names a band past the last, b{bands}")


def with_indices(
    pixels: Shaped[ndarray, "b h w"], valid: Bool[ndarray, "h w"], indices: Sequence[Index]
) -> Shaped[ndarray, "c h w"]:
    """Return the bands and then the indices, float32; `pixels` as they are where there are no indices.

    A pixel that is not valid is 0 in every band. In a valid one an index may be NaN: it has no value there.
    """
    if not indices:
        return pixels
    found = np.empty((len(pixels) + len(indices), *valid.shape), np.float32)
    found[: len(pixels)] = pixels
    for band, index in zip(found[len(pixels) :], indices, strict=True):
        band[:] = np.where(valid, index.of(pixels), 0)
    return found


def filled(image: Float32[ndarray, "c h w"], values: Sequence[float]) -> Float32[ndarray, "c h w"]:
    """Return `image` with one of `values` in place of NaN in each of its last bands, written into it."""
    for band, value in zip(image[len(image) - len(values) :], values, strict=True):
        band[np.isnan(band)] = value
    return image


def _parse(formula: str) -> ast.expr:
    """Return the tree of a formula that holds nothing but what it may; raise ValueError saying what else and where."""
    text = " ".join(formula.split())
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the formula has {len(text)} characters, at most {MOST_CHARACTERS} are read")
    strange = STRANGE.search(text)
    if strange:
        raise ValueError(f"{strange[0]!r} at character {strange.start() + 1} of the formula is not allowed: {ALLOWED}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as 1if: what follows says it better
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
        if depth > MOST_DEPTH:
            raise ValueError(f"the formula nests more than {MOST_DEPTH} deep")
    if not _names(tree):
        raise ValueError("the formula names no band")


def _allowed(node: ast.expr) -> bool:
    match node:
        case ast.BinOp():
            return type(node.op) in OPERATORS
        case ast.UnaryOp():
            return type(node.op) in SIGNS
        case ast.Constant():
            value = node.value
            return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
        case _:
            return isinstance(node, ast.Name)


def _nodes(tree: ast.expr) -> Iterator[tuple[ast.expr, int]]:
    """Yield the parts of a formula with their depth, from the left; not what lies inside of what it may not hold."""
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
    """Return the number of the band that a formula calls `name`."""
    numbered = NUMBERED.fullmatch(name)
    called = [own.casefold() if numbered else own for own in band_names]
    meant = {number for number, own in enumerate(called, start=1) if own == name}
    if numbered and int(numbered[1]) <= len(band_names):
        meant.add(int(numbered[1]))
    if len(meant) == 1:
        return meant.pop()
    if meant:
        these = " or ".join(f"b{number} ({band_names[number - 1]})" for number in sorted(meant))
        raise ValueError(f"{name} could be {these}. Use a name or a number that is clear")
    known = ", ".join(f"b{i} {own}" for i, own in enumerate(band_names, start=1))
    raise ValueError(f"{name} is no band; there are: {known}")


def _value(node: ast.expr, bands: Shaped[ndarray, "b h w"]) -> Any:
    match node:
        case ast.BinOp():
            return OPERATORS[type(node.op)](_value(node.left, bands), _value(node.right, bands))
        case ast.UnaryOp():
            return SIGNS[type(node.op)](_value(node.operand, bands))
        case ast.Name():
            return bands[_number(node) - 1].astype(np.float64)
        case ast.Constant():
            # numpy's number: divided by zero it is infinite, where Python's raises.
            return np.float64(node.value)  # type: ignore[arg-type]  # `_check` let numbers pass alone
        case _:
            raise AssertionError(ast.dump(node))
