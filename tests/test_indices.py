"""Formulas of bands: what they compute, what is refused and where, and what a band without a value is."""

import ast
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from geograft.errors import SettingError
from geograft.indices import Index, check_indices, index_of, indices_of, with_indices

NAMES = ("coastal", "blue", "green", "band 4")


def formulas() -> st.SearchStrategy[str]:
    """Arithmetic as people write it, with and without parentheses, signs and spaces."""
    leaves = st.sampled_from(["b1", "b2", "b3", "b4", "1", "0.5", "2.5e1", "0"])

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pair = st.tuples(inner, st.sampled_from([" + ", "-", "*", " / "]), inner).map("".join)
        return pair | pair.map("({})".format) | inner.map("-{}".format) | inner.map("+{}".format)

    return st.recursive(leaves, grown, max_leaves=12).filter(lambda formula: "b" in formula)


@given(formulas(), st.integers(0, 2**32 - 1))
def test_a_formula_is_what_python_makes_of_it(formula: str, seed: int) -> None:
    bands = np.random.default_rng(seed).integers(0, 5, (4, 3, 7)).astype(np.uint16)
    known = {"float64": np.float64} | {f"b{i}": band.astype(float) for i, band in enumerate(bands, start=1)}
    with np.errstate(all="ignore"):
        # Python's own numbers raise where they are divided by zero; numpy's do not.
        expected = eval(re.sub(r"(?<![\w.])\d[\d.e]*", r"float64(\g<0>)", formula), known).astype(np.float32)
    found = index_of(f"x={formula}", NAMES).of(bands)
    np.testing.assert_array_equal(found, np.where(np.isfinite(expected), expected, np.nan))


@pytest.mark.parametrize(
    ("formula", "kept"),
    [
        ("(b4-b3)/(b4+b3)", "(b4 - b3) / (b4 + b3)"),
        ("((green))", "b3"),
        ("blue - -green*2", "b2 - -b3 * 2"),
        ("b4-(b3-b2)", "b4 - (b3 - b2)"),
    ],
)
def test_bands_are_kept_by_number(formula: str, kept: str) -> None:
    index = index_of(f" ndvi = {formula}", NAMES)
    assert index == Index("ndvi", kept)
    assert index_of(f"ndvi={index.formula}", NAMES) == index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ndvi", "give a name and a formula, as in ndvi="),
        ("=b1", "give a name and a formula"),
        ("nd vi=b1", "give a name and a formula"),
        ("blue=b1", "blue is a band already"),
        ("b7=b1", "b7 is a band already"),
        ("x=", "invalid syntax at character"),
        ("x=1/2", "the formula names no band"),
        ("x=(b1-b2", r"'\(' was never closed at character 1 of the formula: a formula holds"),
        ("x=b1-b5", r"b5 is no band; there are: b1 coastal, b2 blue, b3 green, b4 band 4\."),
        ("x=b1+b0", "b0 is no band"),
        ("x=b1+nir", "nir is no band"),
        ("x=b1 + b2**2", r"'b2\*\*2' at character 6 of the formula is not allowed"),
        ("x=b1//b2", "'b1//b2' at character 1"),
        ("x=b1+abs(b2)", r"'abs\(b2\)' at character 4"),
        ("x=b1+blue.real", "'blue.real' at character 4"),
        ("x=b1+1j", "'1j' at character 4"),
        ("x=b1+True", "'True' at character 4"),
        ("x=b1+1e999", "'1e999' at character 4"),
        ("x=ä+b1.t", "'b1.t' at character 3"),
        ("x=b1 if b2 else b3", "'b1 if b2 else b3' at character 1"),
        ("x=[b1]", r"'\[' at character 1 of the formula is not allowed"),
        ("x=b1%b2", "'%' at character 3"),
        ("x=b1;b2", "';' at character 3"),
        ("x=b1=b2", "'=' at character 3"),
        ("x=" + "-" * 60 + "b1", "nests more than 50 deep"),
        ("x=" + "(" * 500 + "b1" + ")" * 500, "at most 300"),
        ("x=" + "+b1" * 101, "303 characters, at most 300"),
        ("x=__import__('os')", '"\'" at character'),
    ],
)
def test_a_wrong_formula_is_one_line_that_points_at_the_fault(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        index_of(text, NAMES)
    assert str(caught.value).startswith("--index ")
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="b123()+-*/. \n_[]'\"\\ e:,x=", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        index = index_of(f"x={text}", NAMES)
    except SettingError as error:
        assert "\n" not in str(error)
    else:
        assert {type(node) for node in ast.walk(ast.parse(index.formula, mode="eval"))} <= {
            *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.Load),
            *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UAdd, ast.USub),
        }
        assert 1 <= index.last_band <= 4


SENTINEL = ("B2", "B3", "B4", "B8")


def test_a_band_that_two_could_be_is_refused() -> None:
    assert index_of("ndvi=(B8-B4)/(B8+B4)", SENTINEL).formula == "(b4 - b3) / (b4 + b3)"
    assert index_of("x=b1", SENTINEL).formula == "b1"
    with pytest.raises(SettingError, match=r"b4 could be b3 \(B4\) or b4 \(B8\)\."):
        index_of("ndvi=(b8-b4)/(b8+b4)", SENTINEL)
    with pytest.raises(SettingError, match=r"b8 could be b2 \(B8\) or b8 \(g\)"):
        index_of("x=b8", ("B2", "B8", *"acdefgh"[:-1]))
    with pytest.raises(SettingError, match="red could be b1"):
        index_of("x=red", ("red", "red"))
    assert index_of("x=b4", ("B1", "B2", "B3", "B4")).formula == "b4"


def test_indices_have_names_of_their_own() -> None:
    assert [each.name for each in indices_of(["x=b1", "y=b2"], NAMES)] == ["x", "y"]
    with pytest.raises(SettingError, match="--index names x twice"):
        indices_of(["x=b1", "x=b2"], NAMES)


def test_an_index_comes_back_from_json_and_a_strange_one_does_not() -> None:
    kind = TypeAdapter(Index)
    index = index_of("ndvi=(b4-b3)/(b4+b3)", NAMES)
    assert kind.validate_python(json.loads(kind.dump_json(index))) == index
    for formula in ("nir - b1", "open(b1)", "1", ""):
        with pytest.raises(ValidationError):
            kind.validate_python({"name": "x", "formula": formula})
    check_indices([index], 4)
    with pytest.raises(ValueError, match="names a band past the last, b3"):
        check_indices([index], 3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_an_index_of_whole_numbers_does_not_wrap_around(dtype: str) -> None:
    bands = np.array([[[200, 0, 5, 0]], [[250, 0, 0, 3]]]).astype(dtype)
    valid = np.array([[True, True, True, False]])
    found = with_indices(bands, valid, [Index("nd", "(b1 - b2) / (b1 + b2)"), Index("inverse", "1 / b2")])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:2], bands)
    np.testing.assert_array_equal(found[2, 0], np.array([-50 / 450, np.nan, 1, 0], np.float32))
    np.testing.assert_array_equal(found[3, 0], np.array([1 / 250, np.nan, np.nan, 0], np.float32))


def test_a_number_too_large_for_32_bits_is_no_value() -> None:
    bands = np.array([[[1e30, 1.0]]], np.float32)
    np.testing.assert_array_equal(Index("x", "b1 * b1").of(bands), np.array([[np.nan, 1]], np.float32))


def test_without_indices_nothing_is_made() -> None:
    bands = np.ones((2, 3, 3), np.uint8)
    assert with_indices(bands, np.ones((3, 3), bool), ()) is bands
