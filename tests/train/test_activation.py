"""Which function makes probabilities of outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fatwood.errors import OptionError, UserError
from fatwood.train.activation import activation_of

OUTPUT = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 3.0]])


class Weighted(nn.CrossEntropyLoss):
    """A loss of the user's own that is one of these."""


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (nn.CrossEntropyLoss(), OUTPUT.double().softmax(1)),
        (Weighted(), OUTPUT.double().softmax(1)),
        (nn.BCEWithLogitsLoss(), OUTPUT.double().sigmoid()),
        (nn.NLLLoss(), OUTPUT.double().exp()),
        (nn.MSELoss(), OUTPUT),
        (nn.BCELoss(), OUTPUT),
        (lambda output, label: output.sum(), OUTPUT),
        (None, OUTPUT),
    ],
)
def test_by_the_loss(loss, expected) -> None:
    assert torch.equal(activation_of(loss)(OUTPUT), expected)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("softmax", OUTPUT.double().softmax(1)),
        ("sigmoid", OUTPUT.double().sigmoid()),
        ("exp", OUTPUT.double().exp()),
        (None, OUTPUT),
        (torch.tanh, OUTPUT.tanh()),
        (nn.Softplus(), nn.functional.softplus(OUTPUT)),
    ],
)
def test_as_the_user_says_whatever_the_loss(activation, expected) -> None:
    assert torch.equal(activation_of(nn.CrossEntropyLoss(), activation)(OUTPUT), expected)


def test_far_logits_keep_their_order() -> None:
    assert activation_of(nn.BCEWithLogitsLoss())(torch.tensor([20.0, 21.0])).diff() > 0


@pytest.mark.parametrize("activation", ["relu", 3, nn.Softmax])
def test_what_is_none(activation) -> None:
    with pytest.raises(OptionError, match=r"activation: expected 'auto'.*received"):
        activation_of(None, activation)


def test_a_softmax_needs_classes() -> None:
    with pytest.raises(UserError, match=r"\(rows, classes\) for a softmax, received \(2,\)"):
        activation_of(None, "softmax")(torch.zeros(2))
