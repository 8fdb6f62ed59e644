"""What a network is made of and what it costs: the article's size analysis, for any model."""

from pathlib import Path

from geograft.config import ModelConfig, load_recipe, parse_recipe
from geograft.errors import SettingError
from geograft.figures.graph import Node, png, svg
from geograft.files import replacing
from geograft.networks.encoder import check_name
from geograft.networks.summary import ModelSummary, describe

ARCHITECTURES = ("light", "transfer", "unet")


def model(name_or_recipe: str, bands: int = 3, outputs: int = 1, size: int = 224) -> ModelSummary:
    """Return the size analysis of a network: its parts with shapes, parameters and GFLOP, and the memory of a tile.

    `name_or_recipe` is unet, transfer, light, timm's name of an encoder, or the path of a recipe, whose [model] counts.
    `outputs` is 1 for two classes, else the number of classes; `size` is the edge of a tile in pixels. No weights
    are looked up. Costs a few forward passes of one tile on the CPU, in time and in memory.

    Raises:
        SettingError: when the name is none of these, the encoder cannot be one, or a number is not positive.
    """
    for setting, value in {"bands": bands, "outputs": outputs, "size": size}.items():
        if value < 1:
            raise SettingError(f"{setting} = {value} must be at least 1.")
    return describe(config_of(name_or_recipe), bands, outputs, size)


def config_of(name_or_recipe: str) -> ModelConfig:
    """Return the settings that a name stands for: unet, transfer, light, timm's name of an encoder, or a recipe's path.

    Raises:
        SettingError: when it is none of these, or the recipe cannot be read.
    """
    if name_or_recipe in ARCHITECTURES:
        return parse_recipe({"model": {"architecture": name_or_recipe}}).model
    if Path(name_or_recipe).suffix == ".toml":
        return load_recipe(Path(name_or_recipe)).model
    try:
        check_name(name_or_recipe)
    except SettingError as error:
        raise SettingError(f"{error} Or give unet, transfer, light, or the path of a recipe (.toml).") from error
    return ModelConfig(encoder=name_or_recipe)


def draw(summary: ModelSummary, path: Path) -> None:
    """Draw the network's graph into `path`, as .svg or .png by its suffix.

    Raises:
        SettingError: for any other suffix.
        OutputError: when the file cannot be written.
    """
    if path.suffix not in (".svg", ".png"):
        raise SettingError(f"{path}: the graph is drawn as .svg or .png. Give a file name that ends so.")
    picture = svg_of(summary).encode() if path.suffix == ".svg" else png(*_drawn(summary))
    with replacing(path) as part:
        part.write_bytes(picture)


def svg_of(summary: ModelSummary) -> str:
    """Return the network's graph as SVG text, ready to stand in an HTML page."""
    return svg(*_drawn(summary))


def _drawn(summary: ModelSummary) -> tuple[str, str, list[Node]]:
    counts = f"{summary.parameters:,} parameters, {summary.trainable:,} trainable"
    subtitle = f"{counts} · {summary.gflop:.2f} GFLOP for a tile of {summary.size} × {summary.size} pixels"
    image = Node("image", "image", summary.bands, summary.size, summary.size)
    steps = (
        Node(part.name, part.kind, part.channels, part.height, part.width, part.parameters, part.frozen, part.skip)
        for part in summary.parts
    )
    return summary.title, subtitle, [image, *steps]
