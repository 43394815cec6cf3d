"""TensorBoard's own reader finds what the callback wrote."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fatwood.callbacks import TensorBoard
from fatwood.errors import OptionError, UserCodeError
from fatwood.train import Callbacks

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder: Path):
    found = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0})
    found.Reload()
    return found


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in read(folder).Scalars(tag)]


def test_all_figures_are_there(tmp_path, run, replay) -> None:
    replay(TensorBoard(tmp_path / "new" / "folder"))
    folder = tmp_path / "new" / "folder"
    assert scalars(folder, "loss/step") == [(record.step, record.loss) for record in run.steps]
    assert scalars(folder, "loss/epoch") == [(1, run.epochs[0].loss), (2, run.epochs[1].loss)]
    assert scalars(folder, "rows_per_second/epoch") == [(1, 8 / 2), (2, 8 / 4)]
    assert scalars(folder, "loss/validation") == [(2, 0.5), (4, 0.25)]
    assert scalars(folder, "accuracy/validation") == [(4, 0.75)]
    assert scalars(folder, "rows_trained/fit") == [(4, 16)]
    assert scalars(folder, "bytes_per_step/fit") == [(4, run.stats.bytes_per_step)]
    (options,) = read(folder).Tensors("options/text_summary")
    (text,) = options.tensor_proto.string_val
    assert "| optimizer | SGD(lr=0.1) |" in text.decode()
    assert "| strategy | AllReduce() |" in text.decode()


def test_every_third_step(tmp_path, run, replay) -> None:
    replay(TensorBoard(str(tmp_path), every=3))
    assert scalars(tmp_path, "loss/step") == [(1, run.steps[0].loss), (4, run.steps[3].loss)]


def test_a_second_fit_goes_on_with_the_same_curves(tmp_path, run, replay) -> None:
    callback = TensorBoard(tmp_path)
    replay(callback)
    replay(callback)
    assert len(list(tmp_path.glob("events*"))) == 2
    assert len(scalars(tmp_path, "loss/step")) == 2 * len(run.steps)


def test_a_fit_that_failed_says_why(tmp_path, run) -> None:
    told = Callbacks([TensorBoard(tmp_path)])
    told.start(run.info)
    told.error(UserCodeError("KeyError: 'x'"))
    (event,) = read(tmp_path).Tensors("error/text_summary")
    assert event.tensor_proto.string_val == [b"UserCodeError: KeyError: 'x'"]


@pytest.mark.parametrize("every", [0, 1.5, True, None])
def test_every_is_a_number_of_steps(tmp_path, every) -> None:
    with pytest.raises(
        OptionError, match="TensorBoard: expected every= a whole number of at least 1, received"
    ):
        TensorBoard(tmp_path, every=every)


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch) -> None:
    for name in [
        n for n in sys.modules if n.split(".")[0] == "tensorboard" or n.startswith("torch.utils.tensorboard")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(OptionError, match=r'tensorboard(?s:.*)hint: pip install "fatwood\[tensorboard\]"'):
        TensorBoard(tmp_path)
