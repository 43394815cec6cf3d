"""The choice of a device, as a table: what was asked, what Spark gave, what PyTorch sees, and what comes of it."""

from __future__ import annotations

import logging
import os

import pytest
import torch

from fatwood.errors import OptionError
from fatwood.train.device import (
    Cuda,
    DeviceOrder,
    checked_device,
    choose_device,
    find_cuda,
    taken_device,
)

FOUR = Cuda(count=4, uuids=("GPU-a", "GPU-b", "GPU-c", "GPU-d"))
NONE = Cuda(problem="Found no NVIDIA driver on your system")

# what was asked, the environment, what PyTorch sees, Spark's addresses, the worker's number; the GPU, or None for the CPU
CHOICES = {
    "cpu is cpu": ("cpu", {}, FOUR, ("1",), 0, None),
    "the address is the number": ("cuda", {}, FOUR, ("2",), 0, 2),
    "auto takes it, too": ("auto", {}, FOUR, ("2",), 0, 2),
    "the first of several": ("cuda", {}, FOUR, ("3", "1"), 0, 3),
    "an address is a uuid": ("cuda", {}, FOUR, ("GPU-c",), 0, 2),
    "by its name among the visible": ("cuda", {"CUDA_VISIBLE_DEVICES": "2,3"}, Cuda(count=2), ("3",), 0, 1),
    "by its place among the visible": ("cuda", {"CUDA_VISIBLE_DEVICES": "2,3"}, Cuda(count=2), ("0",), 0, 0),
    "the name goes before the place": ("cuda", {"CUDA_VISIBLE_DEVICES": "1,0"}, Cuda(count=2), ("1",), 0, 0),
    "only its own is visible": ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-x"}, Cuda(count=1), ("0",), 0, 0),
    "visible by uuid": ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-x, GPU-y"}, Cuda(count=2), ("GPU-y",), 0, 1),
    "an empty variable hides nothing": ("cuda", {"CUDA_VISIBLE_DEVICES": ""}, FOUR, ("1",), 0, 1),
    "without Spark by the worker": ("cuda", {}, FOUR, (), 6, 2),
    "auto without Spark": ("auto", {}, FOUR, (), 1, 1),
    "auto without a GPU": ("auto", {}, NONE, (), 0, None),
    "auto with an address and no driver": ("auto", {}, NONE, ("0",), 0, None),
    "auto with an address that is not there": ("auto", {}, FOUR, ("7",), 0, None),
    "the CPU goes first": ("auto", {"BACKEND_PRIORITY_CPU": "200"}, FOUR, ("1",), 0, None),
    "the GPU goes last": ("auto", {"BACKEND_PRIORITY_GPU": "-1"}, FOUR, (), 0, None),
    "equal priorities": ("auto", {"BACKEND_PRIORITY_CPU": "100"}, FOUR, (), 0, 0),
    "a priority is of auto alone": ("cuda", {"BACKEND_PRIORITY_CPU": "200"}, FOUR, ("1",), 0, 1),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name: str) -> None:
    asked, environment, cuda, addresses, number, expected = CHOICES[name]
    place = choose_device(DeviceOrder(asked=asked), environment, cuda, addresses, number)
    assert place.device == (None if expected is None else torch.device("cuda", expected))
    assert place.address == (addresses[0] if addresses and expected is not None else None)


def test_gpus_of_spark_are_left_to_the_tasks_that_have_them() -> None:
    assert choose_device(DeviceOrder(asked="auto", scheduled=True), {}, FOUR).device is None
    with pytest.raises(OptionError, match="received none for this task") as caught:
        choose_device(DeviceOrder(asked="cuda", scheduled=True), {}, FOUR)
    assert "spark.task.resource.gpu.amount" in caught.value.hint


@pytest.mark.parametrize(
    ("cuda", "addresses", "words"),
    [
        (NONE, (), ["Found no NVIDIA driver"]),
        (NONE, ("3", "4"), ["Found no NVIDIA driver", "Spark gave GPU 3, 4"]),
        (Cuda(problem="The NVIDIA driver on your system is too old"), ("0",), ["too old"]),
        (FOUR, ("4",), ["one of the 4", "received '4'"]),
        (FOUR, ("GPU-z",), ["received 'GPU-z'"]),
        (FOUR, ("-1",), ["received '-1'"]),
    ],
    ids=str,
)
def test_a_gpu_that_is_not_there_is_an_error(
    cuda: Cuda, addresses: tuple[str, ...], words: list[str]
) -> None:
    with pytest.raises(OptionError) as caught:
        choose_device(DeviceOrder(asked="cuda"), {}, cuda, addresses)
    assert all(word in caught.value.message for word in words)
    assert caught.value.hint


def test_an_address_outside_of_the_visible_names_them() -> None:
    with pytest.raises(OptionError, match="CUDA_VISIBLE_DEVICES=5,6"):
        choose_device(DeviceOrder(asked="cuda"), {"CUDA_VISIBLE_DEVICES": "5,6"}, Cuda(count=2), ("2",))
    # the variable may name more than PyTorch can use
    with pytest.raises(OptionError, match="received '9'"):
        choose_device(DeviceOrder(asked="cuda"), {"CUDA_VISIBLE_DEVICES": "0,9"}, Cuda(count=1), ("9",))


def test_what_was_not_expected_is_in_the_log() -> None:
    several = choose_device(DeviceOrder(asked="cuda"), {}, FOUR, ("1", "2"))
    assert "2 GPUs to one task (1, 2)" in several.remark
    fallen = choose_device(DeviceOrder(asked="auto"), {}, NONE, ("1",))
    assert "on the CPU" in fallen.remark
    assert "Found no NVIDIA driver" in fallen.remark
    assert choose_device(DeviceOrder(asked="auto"), {}, NONE).remark is None


def test_a_priority_that_is_no_number() -> None:
    with pytest.raises(OptionError, match="BACKEND_PRIORITY_GPU: expected a whole number"):
        choose_device(DeviceOrder(), {"BACKEND_PRIORITY_GPU": "high"}, FOUR)


@pytest.mark.parametrize("asked", ["gpu", "cuda:1", None, 0, torch.device("cpu")], ids=str)
def test_other_devices_are_refused(asked: object) -> None:
    with pytest.raises(OptionError, match="expected 'auto', 'cpu' or 'cuda'"):
        checked_device(asked)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a build of PyTorch for CUDA")
def test_a_build_for_the_cpu(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    found = find_cuda()
    assert "built for the CPU" in found.problem
    with pytest.raises(OptionError, match="built for the CPU") as caught:
        taken_device(DeviceOrder(asked="cuda"), (), 0)
    assert "install a build of PyTorch for CUDA" in caught.value.hint
    with caplog.at_level(logging.WARNING, "fatwood.device"):
        assert taken_device(DeviceOrder(), (), 0).device is None
        assert caplog.records == []
        assert taken_device(DeviceOrder(), ("0",), 0).device is None
    assert "to which Spark gave GPU 0" in caplog.text


def test_spark_and_pytorch_count_gpus_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    taken_device(DeviceOrder(asked="cpu"), (), 0)
    assert "CUDA_DEVICE_ORDER" not in os.environ
    taken_device(DeviceOrder(), (), 0)
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    taken_device(DeviceOrder(), (), 0)
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
