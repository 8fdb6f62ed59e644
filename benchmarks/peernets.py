"""Networks of segmentation_models.pytorch (smp) over timm's EfficientNet-B0, with encoder weights from a file."""

from pathlib import Path

import segmentation_models_pytorch as smp
from safetensors.torch import load_file
from torch import Tensor, nn

from geograft.networks.bodies import LightUNet
from geograft.networks.network import Network
from geograft.networks.pyramid import Pyramid, pyramid_from_network
from geograft.networks.weights import uninitialised_network
from measured import NotRunnableError
from trainees import ENCODER

NETWORKS = {"unet": smp.Unet, "fpn": smp.FPN, "deeplab": smp.DeepLabV3Plus}


def smp_network(kind: str, weights: Path) -> nn.Module:
    """Return smp's network with its default settings, for three bands and one logit."""
    network: nn.Module = NETWORKS[kind](f"tu-{ENCODER}", encoder_weights=None)
    load_encoder_weights(network.get_submodule("encoder.model"), weights)
    return network


def load_encoder_weights(encoder: nn.Module, weights: Path) -> None:
    """Load all parameters and buffers of timm's `encoder` from the file, by name.

    Raises:
        NotRunnableError: if the file lacks one.
    """
    state, expected = load_file(weights), encoder.state_dict()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - state.keys() - counters)
    if missing:
        raise NotRunnableError(f"{weights} lacks {len(missing)} tensors of {ENCODER}: {missing[0]}, ...")
    encoder.load_state_dict({name: state.get(name, value) for name, value in expected.items()})


class SmpBody(nn.Module):
    """An smp network as the body of Geograft's `Network`: its stages are a pyramid over the modules of its encoder."""

    def __init__(self, network: nn.Module, bands: int = 3) -> None:
        super().__init__()
        self.network = network
        pyramid = pyramid_from_network(network.get_submodule("encoder.model"), ENCODER, bands)
        self.strides, self.stride = pyramid.strides, pyramid.strides[-1]
        self._pyramid = (pyramid,)  # in a tuple, so that no parameter is registered twice

    @property
    def encoder(self) -> Pyramid:
        """The network's encoder as a pyramid of stages."""
        return self._pyramid[0]

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
    # Built with Geograft's decoder over the same encoder; smp's network then replaces the body.
    network = Network(LightUNet(body.encoder, 3, 1), origin, frozen, trained=True)
    network.body = body  # type: ignore[assignment]
    return network


def use_smp_unet(network: Network) -> None:
    """Replace the body of Geograft's `network` by smp's U-Net, over the same encoder with the same weights.

    Raises:
        NotRunnableError: if the encoder is another one.
    """
    own = network.body.encoder.state_dict()
    bands = next(each.in_channels for each in network.body.encoder.modules() if isinstance(each, nn.Conv2d))
    peer: nn.Module = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, in_channels=bands)
    encoder = peer.get_submodule("encoder.model")
    # The names differ: a pyramid's are those of its stages. Modules and their order are the same.
    if [each.shape for each in encoder.state_dict().values()] != [each.shape for each in own.values()]:
        raise NotRunnableError(f"the encoder of smp's U-Net is {ENCODER}. Give --encoder {ENCODER}")
    encoder.load_state_dict(dict(zip(encoder.state_dict(), own.values(), strict=True)))
    network.body = SmpBody(peer, bands)  # type: ignore[assignment]
    for stage in network.stages[: network.frozen]:
        stage.requires_grad_(requires_grad=False)
