"""Print the size analysis of a network, as in the article: parts, parameters, FLOP and memory."""

from pathlib import Path

from geograft.config import ModelConfig, load_recipe, parse_recipe
from geograft.errors import SettingError
from geograft.figures.graph import Node, graph_png, svg
from geograft.files import write_bytes
from geograft.memory import MAX_TILE_PX, check_batch
from geograft.networks.encoder import check_name
from geograft.networks.summary import ModelSummary, describe

ARCHITECTURES = ("light", "linear", "transfer", "unet")


def model(name_or_recipe: str, bands: int = 3, outputs: int = 1, size: int = 224) -> ModelSummary:
    """Return the size analysis of a network: its parts with shapes, parameters and GFLOP, and the memory per tile.

    `name_or_recipe` is unet, transfer, linear, light, a timm encoder, or the path of a recipe, whose [model] is used.
    `outputs` is 1 for a binary legend, else the number of classes; `size` is the tile size in pixels. No weights are
    loaded. Costs the time and memory of a few forward passes of one tile on the CPU.

    Raises:
        SettingError: if the name is none of these, the network cannot be an encoder, or a number is too small or too
            large.
    """
    for setting, value in {"bands": bands, "outputs": outputs, "size": size}.items():
        if value < 1:
            raise SettingError(f"{setting} = {value} must be at least 1.")
    if size > MAX_TILE_PX:
        raise SettingError(f"size = {size} must be at most {MAX_TILE_PX}.")
    check_batch(1, size, 4 * (bands + outputs))
    return describe(parse_model(name_or_recipe), bands, outputs, size)


def parse_model(name_or_recipe: str) -> ModelConfig:
    """Return the model settings of unet, transfer, linear, light, a timm encoder, or a recipe given by its path.

    Raises:
        SettingError: if the name is none of these, or the recipe cannot be read.
    """
    if name_or_recipe in ARCHITECTURES:
        return parse_recipe({"model": {"architecture": name_or_recipe}}).model
    if Path(name_or_recipe).suffix == ".toml":
        return load_recipe(Path(name_or_recipe)).model
    try:
        check_name(name_or_recipe)
    except SettingError as error:
        raise SettingError(f"{error} Or use unet, transfer, linear, light, or the path of a recipe (.toml).") from error
    return ModelConfig(encoder=name_or_recipe)


def write_graph(summary: ModelSummary, path: Path) -> None:
    """Write a diagram of the network to `path`, as .svg or .png by its suffix.

    Raises:
        SettingError: for any other suffix.
        OutputError: if the file cannot be written.
    """
    if path.suffix not in (".svg", ".png"):
        raise SettingError(f"{path}: unknown image format. Use a file name that ends in .svg or .png.")
    picture = graph_svg(summary).encode() if path.suffix == ".svg" else graph_png(*_graph(summary))
    write_bytes(path, picture)


def graph_svg(summary: ModelSummary) -> str:
    """Return a diagram of the network as SVG, for use in an HTML page."""
    return svg(*_graph(summary))


def _graph(summary: ModelSummary) -> tuple[str, str, list[Node]]:
    counts = f"{summary.parameters:,} parameters, {summary.trainable:,} trainable"
    subtitle = f"{counts} · {summary.gflop:.2f} GFLOP for a tile of {summary.size} × {summary.size} pixels"
    image = Node("image", "image", summary.bands, summary.size, summary.size)
    steps = (
        Node(part.name, part.kind, part.channels, part.height, part.width, part.parameters, part.frozen, part.skip)
        for part in summary.parts
    )
    return summary.title, subtitle, [image, *steps]
