"""`geograft push`: publish a run on the Hugging Face hub, as a bundle with a model card."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from geograft.bundle import THUMBNAIL, BundleMember
from geograft.commands.bundle import bundle_run
from geograft.commands.show import Description, RunScores, show
from geograft.errors import OutputError, SettingError, first_line
from geograft.files import StrPath, optional_path
from geograft.progress import announce
from geograft.runs import HUB, HUB_FILE, REPOSITORY, silent_hub

README = "README.md"
PIPELINE = "image-segmentation"
METRICS = {"iou": "IoU", "f1": "F1"}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Pushed:
    """A run on the hub."""

    repository: str
    url: str
    commit: str
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the output of the command line."""
        return [
            f"{self.url}, commit {self.commit[:12]}",
            f"read it by its name: geograft show {HUB}{self.repository}",
            *(f"Note: {note}" for note in self.notes),
        ]


def push(
    run: StrPath, repository: str, tiles: StrPath | None = None, licence: str = UNKNOWN, private: bool = False
) -> Pushed:
    """Upload a run to USER/NAME on the Hugging Face hub: `model.graft`, its thumbnail, and the model card README.md.

    The repository is created if it does not exist, `private` or public. Files of other names in it stay. `licence` is
    that of the model, as one of the hub's identifiers such as apache-2.0. `tiles` is the current path of the run's tile
    set, if it was moved. The hub's address and token are those of its own client: HF_ENDPOINT, HF_TOKEN, or `hf auth
    login`.

    Raises:
        InputError: if the run cannot be read.
        SettingError: if `repository` is not a name of the hub.
        OutputError: if the hub cannot be reached or refuses the upload.
    """
    if not REPOSITORY.fullmatch(repository):
        raise SettingError(f"{repository!r} is not a name on the hub. Give USER/NAME.")
    with TemporaryDirectory() as name:
        folder = Path(name)
        bundle = folder / HUB_FILE
        notes = bundle_run(Path(run), bundle, optional_path(tiles))
        picture = BundleMember(bundle, THUMBNAIL)
        if picture.exists():
            (folder / THUMBNAIL).write_bytes(picture.read_bytes())
        description = show(bundle)
        text = model_card(description, repository, licence, picture.exists())
        (folder / README).write_text(text, encoding="utf-8")
        announce(f"uploading {bundle.stat().st_size / 1e6:.1f} MB to {repository}")
        url, commit = _upload(folder, repository, private)
    if licence == UNKNOWN:
        notes = (*notes, "the model card says that the licence is unknown. Give --license.")
    return Pushed(repository, url, commit, (*notes, *description.notes))


def model_card(description: Description, repository: str, licence: str, with_picture: bool = False) -> str:
    """Return the hub's model card of a run: YAML with licence, library and scores, then Markdown."""
    card, (size, overlap) = description.card, description.card.window
    wanted = [f"{name} (value {value})" for name, value in zip(card.legend.names, card.legend.values, strict=True)]
    data = description.origin.training_data
    pixel = f", with pixels of about {card.resolution_m:.3g} m" if card.resolution_m else ""
    parts = [
        f"---\n{_metadata(description, licence)}\n---",
        f"# {_plain(card.name)}",
        f"Made with Geograft: {_plain(description.task)} in satellite or aerial images.",
        *([f"![A tile beside its map]({THUMBNAIL})"] if with_picture else []),
        f"    geograft predict {HUB}{repository} RASTER.tif --out MAP.tif",
        "## Input and output",
        f"Rasters of {card.dtype} with the bands {_plain(', '.join(card.band_names[: card.bands]))}, in this order"
        f"{pixel}. They are mapped in windows of {size} pixels that overlap by {overlap}. Classes: "
        f"{_plain(', '.join(wanted))}.",
        "## Training data",
        f"{data.train_tiles:,} training, {data.val_tiles:,} validation and {data.test_tiles:,} test tiles of "
        f"{data.scenes:,} scenes."
        if data
        else "The size of the training data is not recorded.",
        f"Pretrained weights of the encoder: {_plain(card.weights_from)}. Their licence: "
        f"{description.origin.weights_licence}.",
        "## Scores",
        _score_table(description.scores),
    ]
    return "\n\n".join(parts) + "\n"


def _upload(folder: Path, repository: str, private: bool) -> tuple[str, str]:
    """Upload a folder and return the address of the repository and the commit."""
    from huggingface_hub import HfApi, constants  # noqa: PLC0415  (slow to import)

    api = HfApi(library_name="geograft")
    try:
        with silent_hub():
            url = api.create_repo(repository, private=private or None, exist_ok=True)
            commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by geograft push")
    except Exception as error:  # the client's errors depend on its version and backend (requests, httpx)
        raise OutputError(
            f"{repository} cannot be written on {constants.ENDPOINT}: {first_line(error)}. Check the name and the "
            "connection, and log in with `hf auth login` or HF_TOKEN."
        ) from error
    return str(url), str(commit.oid)


def _metadata(description: Description, licence: str) -> str:
    """Return the YAML of the model card."""
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415  (slow to import)

    results = [
        EvalResult(
            task_type=PIPELINE,
            dataset_type="geograft-tiles",
            dataset_name=scores.dataset,
            dataset_split=scores.split,
            metric_type=metric,
            metric_name=_metric_name(scores, metric),
            metric_value=value,
        )
        for scores in description.scores
        for metric in METRICS
        if (value := scores.overall.get(metric)) is not None
    ]
    named: dict[str, Any] = {"model_name": description.card.name, "eval_results": results} if results else {}
    data = ModelCardData(
        license=licence,
        library_name="geograft",
        pipeline_tag=PIPELINE,
        tags=["semantic-segmentation", "remote-sensing", "geospatial"],
        **named,
    )
    return str(data.to_yaml())


def _metric_name(scores: RunScores, metric: str) -> str:
    interval = scores.overall_intervals.get(metric)
    return METRICS[metric] + (f" (95 % CI {interval[0]:.3f}-{interval[1]:.3f})" if interval else "")


def _score_table(tables: tuple[RunScores, ...]) -> str:
    if not tables:
        return "None yet."
    rows = [
        f"| {_plain(scores.name)} | {_metric_name(scores, metric)} | {value:.3f} | {scores.tiles_scored:,} |"
        for scores in tables
        for metric in METRICS
        if (value := scores.overall.get(metric)) is not None
    ]
    return "\n".join(["| scores | metric | value | tiles |", "|---|---|---|---|", *rows])


def _plain(text: str) -> str:
    """Return text of a user on one line, with the characters escaped that Markdown or HTML would interpret."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|" else char for char in " ".join(text.split()))
