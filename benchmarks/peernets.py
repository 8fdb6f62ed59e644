"""segmentation_models.pytorch's networks over timm's EfficientNet-B0, with the encoder's weights from a file."""

from pathlib import Path

import segmentation_models_pytorch as smp
from safetensors.torch import load_file
from torch import Tensor, nn

from geograft.networks.light import LightUNet
from geograft.networks.network import Network
from geograft.networks.pyramid import Pyramid, pyramid_from_network
from geograft.networks.weights import uninitialised_network
from measured import NotRunnableError
from trainees import ENCODER

NETWORKS = {"unet": smp.Unet, "fpn": smp.FPN, "deeplab": smp.DeepLabV3Plus}


def smp_network(kind: str, weights: Path) -> nn.Module:
    """Return smp's network with its own settings, three bands, one logit."""
    network: nn.Module = NETWORKS[kind](f"tu-{ENCODER}", encoder_weights=None)
    fill(network.get_submodule("encoder.model"), weights)
    return network


def fill(encoder: nn.Module, weights: Path) -> None:
    """Set every weight and statistic of timm's `encoder` to that of the same name in the file.

    Raises:
        NotRunnableError: when the file lacks one.
    """
    state, own = load_file(weights), encoder.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    lacking = sorted(own.keys() - state.keys() - counters)
    if lacking:
        raise NotRunnableError(f"{weights} lacks {len(lacking)} tensors of {ENCODER}: {lacking[0]}, ...")
    encoder.load_state_dict({name: state.get(name, value) for name, value in own.items()})


class SmpBody(nn.Module):
    """An smp network as Geograft's engine trains one: its stages are those of a pyramid over its encoder's modules."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        cut = pyramid_from_network(network.get_submodule("encoder.model"), ENCODER, bands=3)
        self.strides, self.stride = cut.strides, cut.strides[-1]
        self._cut = (cut,)  # in a tuple, so that no weight has two names

    @property
    def encoder(self) -> Pyramid:
        """The network's encoder as a pyramid of stages."""
        return self._cut[0]

    @property
    def stages(self) -> nn.ModuleList:
        """The encoder's stages, from the image downwards."""
        return self.encoder.stages

    def maps(self, image: Tensor) -> list[Tensor]:
        """Return the encoder's maps, from fine to coarse."""
        return self.encoder(image)  # type: ignore[no-any-return]

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(image)
        return logits


def smp_in_geograft(kind: str, weights: Path, frozen: int) -> Network:
    """Return smp's network for Geograft's engine, with the first `frozen` stages of its encoder frozen."""
    body = SmpBody(smp_network(kind, weights))
    origin = uninitialised_network(ENCODER, 3, str(weights))[1]
    # Made over the same encoder with a decoder of Geograft's, which smp's then replaces.
    network = Network(LightUNet(body.encoder, 3, 1), origin, frozen, trained=True)
    network.body = body  # type: ignore[assignment]
    return network
