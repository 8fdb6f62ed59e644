import pytest
import torch

from geograft.errors import SettingError
from geograft.networks.device import (
    deterministic_algorithms,
    find_device,
    find_precision,
    half_precision,
    memory_format_for,
)


def seeing(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_selects_the_fastest_device(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str) -> None:
    seeing(monkeypatch, cuda, mps)
    assert find_device("auto") == expected
    assert find_device("cpu") == "cpu"


def test_unavailable_devices_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    seeing(monkeypatch, cuda=False, mps=True)
    with pytest.raises(SettingError, match=r"'cuda'.*auto or mps or cpu"):
        find_device("cuda")
    with pytest.raises(SettingError, match="'tpu'"):
        find_device("tpu")


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_precision("auto", "mps") == "32-true"
    for supported, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda supported=supported: supported)
        assert find_precision("auto", "cpu") == expected
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, supported=supported: supported)
        assert find_precision("auto", "cuda") == expected
    assert find_precision("bf16-mixed", "cpu") == "bf16-mixed"
    with pytest.raises(SettingError, match="16-mixed"):
        find_precision("16-mixed", "cpu")


def test_half_precision_is_what_the_gpu_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, supported=supported: supported)
        assert half_precision(torch.device("cuda")) is expected
    assert [half_precision(torch.device(device)) for device in ("cpu", "mps")] == [None, None]


def test_mps_uses_the_contiguous_memory_format() -> None:
    assert memory_format_for(torch.device("cpu")) is memory_format_for(torch.device("cuda")) is torch.channels_last
    assert memory_format_for(torch.device("mps")) is torch.contiguous_format


def test_deterministic_algorithms_are_restored_afterwards() -> None:
    for device, inside in (("cpu", False), ("cuda", True)):
        with deterministic_algorithms(torch.device(device)):
            assert torch.are_deterministic_algorithms_enabled() is inside
            assert torch.utils.deterministic.fill_uninitialized_memory is not inside
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
