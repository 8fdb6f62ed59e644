"""What a search changes in a recipe, learning rates, losses and encoder, and how long a trial trains."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from geograft.config import ModelConfig, Recipe
from geograft.errors import SettingError
from geograft.making import as_json
from geograft.verbs.curve.points import WITHOUT_EFFECT

Values = dict[str, str | float]
"""What a trial sets, by the name of the setting."""
REACH = 5.0
"""Learning rates are drawn from a fifth of the recipe's to five times it."""
REGIONS = ("dice", "tversky", "lovasz")
ENTROPIES = ("plain", "focal")
PARTS = (4, 2, 1)
"""A trial trains with a quarter of the epochs, then half, then all."""
DIGITS = 3
"""Of a learning rate that is drawn; finer than any difference it makes, and short in a recipe."""


@dataclass(frozen=True)
class Space:
    """A recipe, and the encoders to try in it."""

    recipe: Recipe
    encoders: tuple[str, ...]

    @classmethod
    def of(cls, recipe: Recipe, encoders: tuple[str, ...]) -> "Space":
        """Return the space around `recipe` with `encoders`, or with the recipe's own where none are given.

        Raises:
            SettingError: for encoders in a network that takes none, or whose weights cannot all be had the same way.
        """
        model, several = recipe.model, tuple(dict.fromkeys(encoders))
        if several and (model.architecture == "unet" or model.start):
            what = "start is set" if model.start else "architecture = unet has no encoder"
            raise SettingError(f"--encoders {','.join(several)}: {what}. Leave --encoders out.")
        if len(several) > 1 and model.weights not in ("hub", "none"):
            weights = f"weights = {model.weights!r} are those of one encoder"
            raise SettingError(f"--encoders {','.join(several)}: {weights}. Give --weights hub or none.")
        return cls(replace(recipe, variants=()), several or (model.encoder,))

    def own(self) -> Values:
        """Return the recipe's own settings; the first encoder where the recipe's is not among those to try."""
        train, model = self.recipe.train, self.recipe.model
        encoder = model.encoder if model.encoder in self.encoders else self.encoders[0]
        return {name: encoder if name == "encoder" else getattr(train, name) for name in self.searched()}

    def searched(self) -> tuple[str, ...]:
        """Return the names of what is searched; an encoder from scratch has no rate of its own."""
        several = ("encoder",) if len(self.encoders) > 1 or self.encoders[0] != self.recipe.model.encoder else ()
        fine_tuned = ("encoder_lr",) if _fine_tuned(self.recipe.model) else ()
        return (*several, "decoder_lr", *fine_tuned, "region", "region_weight", "entropy")

    def recipe_of(self, values: Mapping[str, Any], epochs: int) -> Recipe:
        """Return the recipe with `values`, with all of its schedule in `epochs` epochs."""
        share = epochs / self.recipe.train.epochs
        length = {
            "epochs": epochs,
            "warmup_epochs": self.recipe.train.warmup_epochs * share,
            "freeze_epochs": int(self.recipe.train.freeze_epochs * share),
        }
        model = {name: value for name, value in values.items() if name == "encoder"}
        train = {name: value for name, value in values.items() if name != "encoder"}
        return self.recipe.changed(model=model, train=train | length)

    def rungs(self) -> tuple[int, ...]:
        """Return how many epochs a trial trains at first, then, and at last.

        >>> Space(Recipe(), ()).rungs()
        (3, 5, 10)
        """
        return tuple(sorted({-(-self.recipe.train.epochs // part) for part in PARTS}))

    def settings(self, fingerprint: str) -> dict[str, Any]:
        """Return all that a trial's score depends on but for its number, as JSON gives it back."""
        recipe = asdict(self.recipe)
        train = {name: value for name, value in recipe["train"].items() if name not in WITHOUT_EFFECT}
        encoders = list(self.encoders)
        return as_json({"tiles": fingerprint, "encoders": encoders, "model": recipe["model"], "train": train})

    def rates(self, name: str) -> tuple[float, float]:
        """Return the least and the largest of the learning rate `name`."""
        rate = getattr(self.recipe.train, name)
        return rate / REACH, rate * REACH

    def choices(self, name: str) -> tuple[str, ...]:
        """Return what the setting `name` is chosen from; nothing where it is a number."""
        return {"encoder": self.encoders, "region": REGIONS, "entropy": ENTROPIES}.get(name, ())


def _fine_tuned(model: ModelConfig) -> bool:
    return bool(model.start) or (model.architecture != "unet" and model.weights != "none")
