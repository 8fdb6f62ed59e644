import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geograft.figures.graph import Node, graph_png, layout_nodes, layout_rows, sheet_count, svg


def u_of(depth: int, edge: int = 256) -> list[Node]:
    down = [Node(f"encoder {i}", "encoder", 8 * i, edge >> i, edge >> i, 10 * i, i <= 2) for i in range(1, depth + 1)]
    up = [
        Node(f"decoder {i}", "decoder", 8, node.height * 2, node.width * 2, 7, skip=node.name)
        for i, node in enumerate(down[::-1], 1)
    ]
    deepest = Node("bottleneck", "bottleneck", 64, down[-1].height, down[-1].width, 99)
    return [Node("image", "image", 3, edge, edge), *down, deepest, *up, Node("head", "head", 1, edge, edge, 5)]


def texts(picture: str) -> list[str]:
    return [
        "".join(each.itertext()).strip() for each in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_the_svg_names_every_node_with_its_shape() -> None:
    shown = texts(svg("A title", "a subtitle", u_of(5)))
    assert {"A title", "a subtitle", "image", "encoder 1, frozen", "encoder 3", "decoder 5", "head"} <= set(shown)
    assert {"3 × 256 × 256", "40 × 8 × 8", "99 parameters"} <= set(shown)
    assert shown.count("skip") == 5


def test_upsampling_and_downsampling_are_labelled() -> None:
    shown = texts(svg("", "", u_of(3)))
    assert (shown.count("÷2"), shown.count("×2")) == (3, 3)


def test_the_same_network_gives_the_same_svg() -> None:
    assert svg("a", "b", u_of(4)) == svg("a", "b", u_of(4))


def test_the_png_has_the_colours_of_the_nodes() -> None:
    with Image.open(io.BytesIO(graph_png("a", "b", u_of(4)))) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 800
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20) or []}
    assert {(0, 114, 178), (166, 203, 227), (230, 159, 0), (204, 121, 167), (0, 158, 115)} <= colours


def test_drawing_does_not_change_matplotlib_settings() -> None:
    before = dict(mpl.rcParams)
    svg("a", "b", u_of(2))
    assert dict(mpl.rcParams) == before


def boxes(nodes: Sequence[Node]) -> list[tuple[float, float, float, float]]:
    return [(place.left, place.bottom, place.right, place.top) for place in layout_nodes(nodes)]


@given(depth=st.integers(1, 5), edge=st.sampled_from([64, 224, 1024]))
def test_no_two_maps_overlap(depth: int, edge: int) -> None:
    every = boxes(u_of(depth, edge))
    for i, a in enumerate(every):
        for b in every[i + 1 :]:
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


@given(depth=st.integers(1, 5))
def test_skips_are_horizontal_and_the_graph_is_symmetrical(depth: int) -> None:
    places = layout_nodes(u_of(depth))
    for left, right in zip(places[: depth + 1], places[:depth:-1], strict=False):
        assert left.y == right.y
        assert left.x == -right.x
    assert places[depth + 1].x == 0
    assert [place.node for place in places] == u_of(depth)


def test_fewer_decoder_steps_than_encoder_stages() -> None:
    nodes = [Node("image", "image", 3, 256, 256), *(Node(f"e{i}", "encoder", 8, 128 >> i, 128 >> i) for i in range(4))]
    nodes += [
        Node("neck", "bottleneck", 8, 16, 16),
        *(Node(f"d{i}", "decoder", 8, 32, 32, skip=f"e{i}") for i in (2, 1)),
    ]
    nodes += [Node("head", "head", 1, 64, 64)]
    assert layout_rows(nodes) == [(0, 8), (1,), (2, 7), (3, 6), (4,), (5,)]
    places = layout_nodes(nodes)
    assert places[2].y == places[7].y
    assert places[3].y == places[6].y
    assert places[5].x == 0
    assert texts(svg("", "", nodes)).count("skip") == 2


def test_one_encoder_stage_as_skip_of_every_decoder_step() -> None:
    steps = [Node(f"d{i}", "decoder", 8, 16 << i, 16 << i, 1, skip="all") for i in range(3)]
    nodes = [Node("image", "image", 3, 256, 256), Node("all", "encoder", 8, 8, 8), Node("neck", "bottleneck", 8, 8, 8)]
    nodes += [*steps, Node("head", "head", 1, 256, 256)]
    assert layout_rows(nodes) == [(0, 6), (1, 5), (4,), (3,), (2,)]
    assert texts(svg("", "", nodes)).count("skip") == 3


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (3, 2), (64, 8), (512, 16)])
def test_the_number_of_sheets_grows_with_the_channels(channels: int, count: int) -> None:
    assert sheet_count(channels, edge=1.0) == count
    assert sheet_count(channels, edge=0.1) == 1
