from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import efficientnet_b0

from geograft.errors import WeightsError
from geograft.networks.encoder import build_encoder
from geograft.networks.weights import (
    load_encoder_weights,
    load_feature_weights,
    match_by_name,
    match_by_order,
    stage_names,
)

TINY = "test_efficientnet"
FILE = Path("weights.pth")


def made(name: str, seed: int, bands: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, in_chans=bands)


def stage_tensors(network: nn.Module, name: str) -> dict[str, Tensor]:
    own = network.state_dict()
    return {key: own[key] for key in stage_names(network, name, own) if not key.endswith("num_batches_tracked")}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("prefix", ["", "encoder.", "module.model.", "backbone.features."])
def test_timms_names_after_any_prefix(prefix: str) -> None:
    source, target = made(TINY, 1), made(TINY, 2)
    state = {prefix + key: tensor for key, tensor in source.state_dict().items()}
    load_encoder_weights(target, TINY, state, FILE)
    assert equal(stage_tensors(target, TINY), stage_tensors(source, TINY))


def test_tensors_beyond_the_stages_are_ignored() -> None:
    source, target = made("efficientnet_b0", 1), made("efficientnet_b0", 2)
    head = target.classifier.weight.clone()
    load_encoder_weights(
        target, "efficientnet_b0", stage_tensors(source, "efficientnet_b0") | {"decoder.weight": head}, FILE
    )
    assert equal(stage_tensors(target, "efficientnet_b0"), stage_tensors(source, "efficientnet_b0"))
    assert torch.equal(target.classifier.weight, head)


@pytest.mark.parametrize("bands", [1, 2, 4, 8])
def test_the_stem_is_adapted_as_timm_does(bands: int, tmp_path: Path) -> None:
    source = made(TINY, 1)
    torch.save(source.state_dict(), tmp_path / "tiny.pth")
    overlay = {"file": str(tmp_path / "tiny.pth")}
    timms = timm.create_model(TINY, pretrained=True, in_chans=bands, pretrained_cfg_overlay=overlay)
    ours = made(TINY, 2, bands)
    load_encoder_weights(ours, TINY, source.state_dict(), FILE)
    assert ours.conv_stem.weight.shape[1] == bands
    assert equal(stage_tensors(ours, TINY), stage_tensors(timms, TINY))


def test_a_stem_for_the_same_bands_is_not_adapted() -> None:
    source, target = made(TINY, 1, bands=5), made(TINY, 2, bands=5)
    load_encoder_weights(target, TINY, source.state_dict(), FILE)
    assert torch.equal(target.conv_stem.weight, source.conv_stem.weight)


def test_torchvisions_efficientnet_gives_the_same_outputs() -> None:
    torch.manual_seed(1)
    reference = efficientnet_b0(weights=None).eval()
    for layer in reference.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    network = made("efficientnet_b0", 2)
    load_encoder_weights(network, "efficientnet_b0", reference.state_dict(), FILE)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = build_encoder(network, "efficientnet_b0", 3).eval()(image)
        x = image
        for stage, ours in zip(reference.features, maps, strict=False):
            x = stage(x)
            assert torch.allclose(ours, x, rtol=1e-4, atol=1e-5)


def test_networks_that_timm_wraps_are_loaded_inside() -> None:
    source, target = made("test_vit", 1), timm.create_model("test_vit", features_only=True)
    load_feature_weights(target, "test_vit", source.state_dict(), FILE)
    filled = {key: tensor for key, tensor in source.state_dict().items() if key in target.model.state_dict()}
    assert equal(target.model.state_dict(), filled)


def test_tensorflow_ports_need_the_tensorflow_network() -> None:
    source = made("tf_efficientnet_b0", 1)
    ported = {
        f"_conv_stem.{i}.{key.rpartition('.')[2]}": tensor
        for i, (key, tensor) in enumerate(source.state_dict().items())
        if "num_b" not in key
    }
    target = made("tf_efficientnet_b0", 2)
    load_encoder_weights(target, "tf_efficientnet_b0", ported, FILE)
    assert equal(stage_tensors(target, "tf_efficientnet_b0"), stage_tensors(source, "tf_efficientnet_b0"))
    with pytest.raises(WeightsError, match="TensorFlow network, unlike efficientnet_b0"):
        load_encoder_weights(made("efficientnet_b0", 2), "efficientnet_b0", ported, FILE)


def test_other_architectures_are_rejected_and_change_nothing() -> None:
    target = made(TINY, 2)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError, match=r"weights.pth .* test_efficientnet: its conv1.weight \("):
        load_encoder_weights(target, TINY, made("resnet18", 1).state_dict(), FILE)
    assert equal(target.state_dict(), before)


def test_deeper_variants_are_rejected() -> None:
    with pytest.raises(WeightsError, match=r"resnet34: its layer2\.0\.conv1\.weight"):
        load_encoder_weights(made("resnet34", 2), "resnet34", made("resnet18", 1).state_dict(), FILE)


def test_equal_names_with_other_shapes_are_rejected() -> None:
    state = made(TINY, 1).state_dict()
    state["blocks.0.0.conv.weight"] = state["blocks.0.0.conv.weight"][:4]
    with pytest.raises(WeightsError, match=r"its blocks\.0\.0\.conv\.weight"):
        load_encoder_weights(made(TINY, 2), TINY, state, FILE)


def test_equal_shapes_with_other_roles_are_rejected() -> None:
    own = made(TINY, 1).state_dict()
    swapped = {"bias": "running_var", "running_var": "bias"}
    renamed = {}
    for i, (key, tensor) in enumerate(own.items()):
        start, _, last = key.rpartition(".")
        renamed[f"layer{i}.{swapped.get(last, last)}" if start == "bn1" else f"layer{i}.{last}"] = tensor
    with pytest.raises(WeightsError, match=r"layer2.running_var .* bn1.bias"):
        load_encoder_weights(made(TINY, 2), TINY, renamed, FILE)


def test_too_few_tensors_are_rejected() -> None:
    state = made(TINY, 1).state_dict()
    few = {f"first.{key}": state[key] for key in ("conv_stem.weight", "bn1.weight", "bn1.bias")}
    with pytest.raises(WeightsError, match="3 tensors"):
        load_encoder_weights(made(TINY, 2), TINY, few, FILE)


def test_a_safetensors_file_is_never_matched_by_order() -> None:
    state = {f"renamed.{key}.{i}": tensor for i, (key, tensor) in enumerate(made(TINY, 1).state_dict().items())}
    with pytest.raises(WeightsError, match=r"\.safetensors .*order"):
        load_encoder_weights(made(TINY, 2), TINY, state, Path("weights.safetensors"))


def test_tensor_pairs() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert match_by_name(["stem.weight", "bn.bias"], {"x.stem.weight": a, "x.bn.bias": b}) == [
        ("stem.weight", "x.stem.weight"),
        ("bn.bias", "x.bn.bias"),
    ]
    assert match_by_name(["stem.weight", "bn.bias"], {"x.stem.weight": a, "y.bn.bias": b}) == []
    own = {"a.weight": a, "a.bias": a, "b.weight": a}
    other = {"1.weight": a, "1.num_batches_tracked": a, "1.bias": b, "2.weight": b}
    in_order = list(match_by_order(["a.weight", "a.bias"], own, other))
    assert in_order == [("a.weight", "1.weight"), ("a.bias", "1.bias")]
