"""Spectral indices: evaluation, rejected formulas and undefined values."""

import ast
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from geograft.errors import SettingError
from geograft.indices import Index, append_indices, check_indices, parse_index, parse_indices

NAMES = ("coastal", "blue", "green", "band 4")


def formulas() -> st.SearchStrategy[str]:
    """Formulas with and without parentheses, signs and spaces."""
    leaves = st.sampled_from(["b1", "b2", "b3", "b4", "1", "0.5", "2.5e1", "0"])

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pair = st.tuples(inner, st.sampled_from([" + ", "-", "*", " / "]), inner).map("".join)
        return pair | pair.map("({})".format) | inner.map("-{}".format) | inner.map("+{}".format)

    return st.recursive(leaves, grown, max_leaves=12).filter(lambda formula: "b" in formula)


@given(formulas(), st.integers(0, 2**32 - 1))
def test_a_formula_is_evaluated_as_python_does(formula: str, seed: int) -> None:
    bands = np.random.default_rng(seed).integers(0, 5, (4, 3, 7)).astype(np.uint16)
    known = {"float64": np.float64} | {f"b{i}": band.astype(float) for i, band in enumerate(bands, start=1)}
    with np.errstate(all="ignore"):
        # Python numbers raise on division by zero; NumPy scalars do not.
        expected = eval(re.sub(r"(?<![\w.])\d[\d.e]*", r"float64(\g<0>)", formula), known).astype(np.float32)
    found = parse_index(f"x={formula}", NAMES).compute(bands)
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
def test_formulas_refer_to_bands_by_number(formula: str, kept: str) -> None:
    index = parse_index(f" ndvi = {formula}", NAMES)
    assert index == Index("ndvi", kept)
    assert parse_index(f"ndvi={index.formula}", NAMES) == index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ndvi", "'ndvi': .*ndvi="),
        ("=b1", "'=b1': .*ndvi="),
        ("nd vi=b1", "'nd vi=b1': .*ndvi="),
        ("blue=b1", ": blue .*another name"),
        ("b7=b1", ": b7 .*another name"),
        ("x=", "at character"),
        ("x=1/2", "no band"),
        ("x=(b1-b2", r"'\(' .*at character 1 "),
        ("x=b1-b5", r"b5 .*: b1 coastal, b2 blue, b3 green, b4 band 4\."),
        ("x=b1+b0", ": b0 .*b1 coastal"),
        ("x=b1+nir", ": nir .*b1 coastal"),
        ("x=b1 + b2**2", r"'b2\*\*2' at character 6 "),
        ("x=b1//b2", "'b1//b2' at character 1"),
        ("x=b1+abs(b2)", r"'abs\(b2\)' at character 4"),
        ("x=b1+blue.real", "'blue.real' at character 4"),
        ("x=b1+1j", "'1j' at character 4"),
        ("x=b1+True", "'True' at character 4"),
        ("x=b1+1e999", "'1e999' at character 4"),
        ("x=ä+b1.t", "'b1.t' at character 3"),
        ("x=b1 if b2 else b3", "'b1 if b2 else b3' at character 1"),
        ("x=[b1]", r"'\[' at character 1 "),
        ("x=b1%b2", "'%' at character 3"),
        ("x=b1;b2", "';' at character 3"),
        ("x=b1=b2", "'=' at character 3"),
        ("x=" + "-" * 60 + "b1", "50"),
        ("x=" + "(" * 500 + "b1" + ")" * 500, " 300"),
        ("x=" + "+b1" * 101, "303 .*300"),
        ("x=__import__('os')", '"\'" at character'),
    ],
)
def test_the_error_for_an_invalid_formula_is_one_line_with_the_position(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        parse_index(text, NAMES)
    assert str(caught.value).startswith("--index ")
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="b123()+-*/. \n_[]'\"\\ e:,x=", max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        index = parse_index(f"x={text}", NAMES)
    except SettingError as error:
        assert "\n" not in str(error)
    else:
        assert {type(node) for node in ast.walk(ast.parse(index.formula, mode="eval"))} <= {
            *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.Load),
            *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UAdd, ast.USub),
        }
        assert 1 <= index.last_band <= 4


SENTINEL = ("B2", "B3", "B4", "B8")


def test_an_ambiguous_band_is_refused() -> None:
    assert parse_index("ndvi=(B8-B4)/(B8+B4)", SENTINEL).formula == "(b4 - b3) / (b4 + b3)"
    assert parse_index("x=b1", SENTINEL).formula == "b1"
    with pytest.raises(SettingError, match=r"b4 .*: b3 \(B4\) or b4 \(B8\)\."):
        parse_index("ndvi=(b8-b4)/(b8+b4)", SENTINEL)
    with pytest.raises(SettingError, match=r"b8 .*: b2 \(B8\) or b8 \(g\)"):
        parse_index("x=b8", ("B2", "B8", *"acdefgh"[:-1]))
    with pytest.raises(SettingError, match=r"red .*: b1"):
        parse_index("x=red", ("red", "red"))
    assert parse_index("x=b4", ("B1", "B2", "B3", "B4")).formula == "b4"


def test_duplicate_index_names_are_refused() -> None:
    assert [each.name for each in parse_indices(["x=b1", "y=b2"], NAMES)] == ["x", "y"]
    with pytest.raises(SettingError, match=r"--index .*x twice"):
        parse_indices(["x=b1", "x=b2"], NAMES)


def test_an_index_round_trips_through_json_and_an_invalid_one_is_refused() -> None:
    kind = TypeAdapter(Index)
    index = parse_index("ndvi=(b4-b3)/(b4+b3)", NAMES)
    assert kind.validate_python(json.loads(kind.dump_json(index))) == index
    for formula in ("nir - b1", "open(b1)", "1", ""):
        with pytest.raises(ValidationError):
            kind.validate_python({"name": "x", "formula": formula})
    check_indices([index], 4)
    with pytest.raises(ValueError, match=r"ndvi .*b3"):
        check_indices([index], 3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_an_index_of_integer_bands_does_not_overflow(dtype: str) -> None:
    bands = np.array([[[200, 0, 5, 0]], [[250, 0, 0, 3]]]).astype(dtype)
    valid = np.array([[True, True, True, False]])
    found = append_indices(bands, valid, [Index("nd", "(b1 - b2) / (b1 + b2)"), Index("inverse", "1 / b2")])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:2], bands)
    np.testing.assert_array_equal(found[2, 0], np.array([-50 / 450, np.nan, 1, 0], np.float32))
    np.testing.assert_array_equal(found[3, 0], np.array([1 / 250, np.nan, np.nan, 0], np.float32))


def test_a_value_beyond_float32_is_nan() -> None:
    bands = np.array([[[1e30, 1.0]]], np.float32)
    np.testing.assert_array_equal(Index("x", "b1 * b1").compute(bands), np.array([[np.nan, 1]], np.float32))


def test_without_indices_the_pixels_are_returned() -> None:
    bands = np.ones((2, 3, 3), np.uint8)
    assert append_indices(bands, np.ones((3, 3), bool), ()) is bands
