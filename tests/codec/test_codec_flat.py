"""Flat views of a network: one memory, in order, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fatwood.codec import FlatBuffers, FlatParameters, digest64, require_finite
from fatwood.errors import NotFiniteError, OptionError


class Tied(nn.Module):
    """An embedding that is also the output layer's weight, and a frozen layer between."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(self.frozen(self.embed(ids)))


def test_order_names_and_sharing():
    net = Tied()
    flat = FlatParameters(net)
    assert flat.names == ("embed.weight", "out.bias")
    assert flat.size == 5 * 3 + 5
    assert net.out.weight is net.embed.weight
    expected = torch.cat([net.embed.weight.detach().reshape(-1), net.out.bias.detach()])
    assert torch.equal(flat.vector, expected)


def test_values_survive_and_memory_is_shared_both_ways():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flat = FlatParameters(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    flat.array[:] = 7.0
    assert all(bool((p == 7.0).all()) for p in net.parameters())
    with torch.no_grad():
        net[2].bias.fill_(-1.0)
    assert flat.vector[-2:].tolist() == flat.array[-2:].tolist() == [-1.0, -1.0]
    net.load_state_dict(before)
    assert torch.equal(flat.vector[:12], before["0.weight"].reshape(-1))


def test_an_optimizer_made_before_or_after_moves_the_vector():
    net = nn.Linear(3, 1)
    early = torch.optim.SGD(net.parameters(), lr=1.0)
    flat = FlatParameters(net)
    late = torch.optim.SGD(net.parameters(), lr=1.0)
    for optimizer in (early, late):
        before = flat.array.copy()
        optimizer.zero_grad()
        net(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        assert np.array_equal(flat.array, before - 1.0)


def test_training_on_the_vector_equals_training_without():
    def train(flatten):
        torch.manual_seed(3)
        net = nn.Sequential(nn.LSTM(2, 3, batch_first=True))
        if flatten:
            FlatParameters(net)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(2, 4, 2))[0].pow(2).sum().backward()
            optimizer.step()
        return torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    assert torch.equal(train(True), train(False))


def test_a_transposed_parameter_is_laid_out_in_its_own_shape():
    net = nn.Module()
    net.w = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    assert FlatParameters(net).array.tolist() == [0, 3, 1, 4, 2, 5]


def test_gradients_gather_with_zeros_where_there_are_none():
    net = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    flat = FlatParameters(net)
    assert not flat.gradient().any()
    net[0](torch.tensor([[2.0, 3.0]])).sum().backward()
    assert flat.gradient().tolist() == [2, 3, 1, 0, 0]
    net.zero_grad()
    assert not flat.gradient().any(), "a reused buffer must not show the step before"


def test_sparse_gradients_are_gathered():
    net = nn.Embedding(4, 2, sparse=True)
    flat = FlatParameters(net)
    net(torch.tensor([1, 1])).sum().backward()
    assert flat.gradient().tolist() == [0, 0, 2, 2, 0, 0, 0, 0]


def test_set_gradient_reaches_the_optimizer_and_comes_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    flat = FlatParameters(net)
    before = flat.array.copy()
    gradient = np.arange(flat.size, dtype=np.float32)
    flat.set_gradient(gradient)
    gradient_read = flat.gradient().copy()
    torch.optim.SGD(net.parameters(), lr=0.5).step()
    assert np.array_equal(gradient_read, gradient)
    assert np.array_equal(flat.array, before - np.float32(0.5) * gradient)
    flat.set_gradient(flat.gradient())  # its own buffer
    assert np.array_equal(flat.gradient(), gradient)
    with pytest.raises(ValueError, match="expected shape"):
        flat.set_gradient(gradient[:-1])


def test_gradients_accumulate_after_set_gradient_as_torch_does():
    net = nn.Linear(2, 1, bias=False)
    flat = FlatParameters(net)
    flat.set_gradient(np.array([10.0, 20.0], np.float32))
    net(torch.tensor([[1.0, 2.0]])).sum().backward()
    assert flat.gradient().tolist() == [11.0, 22.0]


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Linear(2, 2).double(), "'weight': expected float32 on cpu, received torch.float64"),
        (nn.Linear(2, 2).half(), "torch.float16"),
        (nn.Linear(2, 2, device="meta"), "on meta"),
        (nn.LazyLinear(2), "lazy parameter"),
        (nn.Linear(2, 2).requires_grad_(False), "at least one parameter"),
        (nn.ReLU(), "at least one parameter"),
    ],
)
def test_networks_that_cannot_be_flattened_are_refused(net, says):
    with pytest.raises(OptionError, match=says) as caught:
        FlatParameters(net)
    assert caught.value.hint


def test_a_refused_network_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    pointer = net[0].weight.data_ptr()
    with pytest.raises(OptionError, match=r"'1\.weight'"):
        FlatParameters(net)
    assert net[0].weight.data_ptr() == pointer


def test_digest_sees_every_bit():
    net = nn.Linear(3, 3)
    flat = FlatParameters(net)
    digest = flat.digest()
    assert digest == flat.digest() == digest64(flat.array)
    assert 0 <= digest < 2**64
    flat.array.view(np.uint32)[5] ^= 1
    assert flat.digest() != digest
    assert digest64(np.array([0.0])) != digest64(np.array([-0.0]))
    assert digest64(np.arange(6)[::2]) == digest64(np.array([0, 2, 4]))
    assert digest64(np.zeros(0)) != digest64(np.zeros(1))


def test_digest_is_the_same_in_every_version():
    assert digest64(np.array([1.0, 2.0], np.float32)) == 0x66557A26D78F100A


class Buffered(nn.Module):
    """Every kind of buffer; one is replaced, not changed, by forward."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("average", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("table", torch.ones(3), persistent=False)

    def forward(self, x):
        self.average = self.average + x.mean().double()
        return self.norm(x)


def test_float_buffers_are_read_and_written_and_others_left_alone():
    net = Buffered()
    buffers = FlatBuffers(net)
    assert buffers.names == ("average", "norm.running_mean", "norm.running_var")
    assert buffers.size == 5
    net(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    values = buffers.read()
    assert values.dtype == np.float32
    assert values == pytest.approx([2.5, 0.2, 0.3, 1.1, 1.1])
    buffers.write(values * 2)
    assert net.average.item() == 5.0
    assert net.average.dtype == torch.float64
    assert net.norm.running_mean.tolist() == pytest.approx([0.4, 0.6])
    assert net.norm.num_batches_tracked.item() == 1
    assert net.table.tolist() == [1, 1, 1]
    values[:] = -1.0  # a copy
    assert net.average.item() == 5.0
    with pytest.raises(ValueError, match="expected shape"):
        buffers.write(values[:-1])


def test_a_network_without_buffers_has_an_empty_vector():
    buffers = FlatBuffers(nn.Linear(2, 2))
    assert (buffers.names, buffers.size, buffers.read().shape) == ((), 0, (0,))
    buffers.write(np.empty(0, np.float32))


def test_a_position_has_a_name():
    net = nn.Module()
    net.conv = nn.Conv2d(2, 3, 2)
    net.frozen = nn.Linear(2, 2).requires_grad_(False)
    net.scale = nn.Parameter(torch.tensor(1.0))
    net.tied = net.conv
    net.empty = nn.Parameter(torch.zeros(0, 4))
    net.last = nn.Linear(2, 1, bias=False)
    flat = FlatParameters(net)
    net.get_parameter("conv.weight").data.fill_(0.0)
    for position in range(flat.size):
        flat.array[:] = 0.0
        flat.array[position] = 1.0
        where = flat.locate(position)
        name, _, element = where.rstrip("]").partition("[")
        index = tuple(int(i) for i in element.split(",")) if element else ()
        assert net.get_parameter(name).detach()[index].item() == 1.0, where
    assert flat.locate(0) == "scale"
    assert flat.locate(flat.size - 1) == "last.weight[0, 1]"
    for outside in (-1, flat.size):
        with pytest.raises(ValueError, match=rf"range\({flat.size}\)"):
            flat.locate(outside)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(bad):
    update = np.ones(14, np.float32)
    require_finite(update)
    update[[10, 12]] = bad
    with pytest.raises(NotFiniteError, match=r"parameter 10 \(of 14\): expected a finite") as caught:
        require_finite(update)
    assert (caught.value.position, caught.value.n) == (10, 14)
    assert str(caught.value.value) == str(bad)
    update[12] = -bad
    with pytest.raises(NotFiniteError, match="parameter 10"):
        require_finite(update)


def test_large_numbers_are_finite_even_if_their_sum_is_not():
    require_finite(np.full(8, 3e38, np.float32))
