"""What a training job refuses, and how the user's code is named."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from fatwood.errors import DataError, OptionError, UserCodeError
from fatwood.testing.threads import training_job
from fatwood.train import AllReduce, TrainingJob, user_code


def make_job(**changes: object) -> TrainingJob:
    options: dict[str, object] = {
        "network": nn.Linear(2, 2),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "strategy": AllReduce(),
        "batch_size": 5,
        "epochs": 1,
    }
    return training_job(**{**options, **changes})  # type: ignore[arg-type]


def test_a_seed_fits_into_63_bits() -> None:
    assert make_job(seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(OptionError, match=r"seed: expected less than 2\*\*63, received 9223372036854775808"):
        make_job(seed=2**63)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", -1), ("seed", 1.0), ("seed", True), ("batch_size", 0), ("epochs", "3")]
)
def test_numbers_are_whole_and_large_enough(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"^{name}: expected a whole number of at least"):
        make_job(**{name: value})


def test_what_the_users_code_was_given_is_spelled_only_on_error() -> None:
    class Mute:
        @property
        def shape(self) -> tuple[int, ...]:
            raise AssertionError("spelled without need")

    with user_code("loss", output=Mute()):  # type: ignore[arg-type]
        pass
    with pytest.raises(UserCodeError) as caught, user_code("loss", "cast it", output=torch.zeros(2, 3)):
        raise KeyError("k")
    assert caught.value.message == (
        "KeyError: 'k'\nraised by the loss, given output of shape (2, 3) and type torch.float32"
    )
    assert caught.value.hint == "cast it"
    with pytest.raises(UserCodeError, match=r"raised by the optimizer$"), user_code("optimizer"):
        raise KeyError("k")
    with pytest.raises(DataError, match="row 3"), user_code("loss", output=Mute()):  # type: ignore[arg-type]
        raise DataError("row 3")
