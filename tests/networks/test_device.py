from contextlib import nullcontext

import pytest
import torch

from geograft.errors import SettingError
from geograft.networks.device import autocast, find_device, find_precision, layout, repeatable


def seeing(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str) -> None:
    seeing(monkeypatch, cuda, mps)
    assert find_device("auto") == expected
    assert find_device("cpu") == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seeing(monkeypatch, cuda=False, mps=True)
    with pytest.raises(SettingError, match=r"'cuda': PyTorch sees no such device .* Use auto or mps or cpu\."):
        find_device("cuda")
    with pytest.raises(SettingError, match="'tpu' is not a device"):
        find_device("tpu")


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_precision("auto", "mps") == "32-true"
    for there, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=there: there)
        assert find_precision("auto", "cpu") == expected
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there)
        assert find_precision("auto", "cuda") == expected
    assert find_precision("bf16-mixed", "cpu") == "bf16-mixed"
    with pytest.raises(SettingError, match="needs a GPU"):
        find_precision("16-mixed", "cpu")


def test_networks_predict_in_what_the_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda device, dtype: nullcontext((device, dtype)))
    for there, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there)
        with autocast(torch.device("cuda")) as chosen:
            assert chosen == ("cuda", expected)
    for device in ("cpu", "mps"):
        with autocast(torch.device(device)) as chosen:
            assert chosen is None


def test_layout_keeps_apples_own() -> None:
    assert layout(torch.device("cpu")) is layout(torch.device("cuda")) is torch.channels_last
    assert layout(torch.device("mps")) is torch.contiguous_format


def test_repeatable_is_undone_afterwards() -> None:
    for device, inside in (("cpu", False), ("cuda", True)):
        with repeatable(torch.device(device)):
            assert torch.are_deterministic_algorithms_enabled() is inside
            assert torch.utils.deterministic.fill_uninitialized_memory is not inside
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
