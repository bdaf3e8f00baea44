"""RNN, LSTM and LSTMUnit: against torch's own, and what they carry from pass to pass."""

from __future__ import annotations

import json

import pytest
import torch
from building import gradient, make, randn, refill

from caffe_compat.errors import NetError

TYPES = ["RNN", "LSTM"]
STEPS, STREAMS, INPUTS, OUTPUTS = 5, 3, 4, 2
PARAM = f"recurrent_param {{ num_output: {OUTPUTS} }}"
EXPOSED = f"recurrent_param {{ num_output: {OUTPUTS} expose_hidden: true }}"


def recurrent(type, steps=STEPS, streams=STREAMS, static=False, seed=0):
    """A layer with weights of float64."""
    shapes = [(steps, streams, INPUTS), (steps, streams)] + [(streams, 3)] * static
    layer = make(type, *shapes, param=PARAM)
    refill(layer, seed)
    return layer


def ones(steps=STEPS, streams=STREAMS):
    return torch.ones(steps, streams, dtype=torch.float64)


def torch_gates(weight):
    """Caffe's gates i, f, o, g in torch's order i, f, g, o."""
    i, f, o, g = weight.chunk(4)
    return torch.cat((i, f, g, o))


def torch_states(module, weight, bias, hidden, x):
    """The states of torch's module at every step, with the given weights."""
    parameters = {"weight_ih_l0": weight, "bias_ih_l0": bias, "weight_hh_l0": hidden}
    parameters["bias_hh_l0"] = torch.zeros_like(bias)
    return torch.func.functional_call(module.double(), parameters, x)[0]


def test_lstm_is_torchs():
    layer = recurrent("LSTM")
    x = randn(STEPS, STREAMS, INPUTS, seed=9)
    expected = torch_states(torch.nn.LSTM(INPUTS, OUTPUTS), *(torch_gates(blob.tensor) for blob in layer.blobs), x)
    found = layer.forward(x, ones())
    torch.testing.assert_close(found, expected)
    sources = (x, *(blob.tensor for blob in layer.blobs))
    torch.testing.assert_close(gradient(found.square(), *sources), gradient(expected.square(), *sources))


def test_rnn_is_torchs_with_an_output_layer():
    layer = recurrent("RNN")
    weight, bias, hidden, output, output_bias = (blob.tensor for blob in layer.blobs)
    x = randn(STEPS, STREAMS, INPUTS, seed=9)
    states = torch_states(torch.nn.RNN(INPUTS, OUTPUTS), weight, bias, hidden, x)
    expected = torch.tanh(states @ output.t() + output_bias)
    found = layer.forward(x, ones())
    torch.testing.assert_close(found, expected)
    sources = (x, *(blob.tensor for blob in layer.blobs))
    torch.testing.assert_close(gradient(found.square(), *sources), gradient(expected.square(), *sources))


@pytest.mark.parametrize("type", TYPES)
def test_static_input_is_one_more_input_of_every_step(type):
    """The same as that input appended to x, with its weights appended to x's."""
    layer = recurrent(type, static=True)
    plain = make(type, (STEPS, STREAMS, INPUTS + 3), (STEPS, STREAMS), param=PARAM)
    weight, bias, static, *others = (blob.tensor for blob in layer.blobs)
    for blob, tensor in zip(plain.blobs, (torch.cat((weight, static), 1), bias, *others), strict=True):
        blob.tensor = tensor
    x, s = randn(STEPS, STREAMS, INPUTS, seed=8), randn(STREAMS, 3, seed=9)
    both = torch.cat((x, s.expand(STEPS, STREAMS, 3)), 2)
    torch.testing.assert_close(layer.forward(x, ones(), s), plain.forward(both, ones()))


@pytest.mark.parametrize("type", TYPES)
def test_a_marker_of_zero_begins_anew(type):
    """Two sequences behind each other give what each gives alone."""
    both, alone = recurrent(type, steps=4), [recurrent(type, steps=2) for _ in range(2)]
    x = randn(4, STREAMS, INPUTS, seed=9)
    cont = ones(4)
    cont[2] = 0
    expected = torch.cat([layer.forward(part, ones(2)) for layer, part in zip(alone, x.split(2))])
    torch.testing.assert_close(both.forward(x, cont), expected)


@pytest.mark.parametrize("type", TYPES)
class TestCarriedState:
    def test_two_passes_are_one_long_one(self, type):
        long, short = recurrent(type, steps=4), recurrent(type, steps=2)
        x = randn(4, STREAMS, INPUTS, seed=9)
        passes = [short.forward(part, ones(2)) for part in x.split(2)]
        torch.testing.assert_close(torch.cat(passes), long.forward(x, ones(4)))

    def test_no_gradient_passes_from_one_to_the_other(self, type):
        layer = recurrent(type)
        first, second = randn(STEPS, STREAMS, INPUTS, seed=8), randn(STEPS, STREAMS, INPUTS, seed=9)
        layer.forward(first, ones())
        top = layer.forward(second, ones())
        assert torch.autograd.grad(top.sum(), first, allow_unused=True) == (None,)

    def test_resumes_exactly_from_json(self, type):
        layer, resumed = recurrent(type), recurrent(type)
        x = randn(STEPS, STREAMS, INPUTS, seed=9).float()
        for blob in (*layer.blobs, *resumed.blobs):
            blob.tensor = blob.tensor.float()
        layer.forward(x, ones().float())
        resumed.load_state(json.loads(json.dumps(layer.state())))
        assert torch.equal(resumed.forward(x, ones().float()), layer.forward(x, ones().float()))

    def test_state_of_another_net(self, type):
        with pytest.raises(NetError, match="the states to resume from are"):
            recurrent(type).load_state(recurrent(type, streams=2).state())

    @pytest.mark.parametrize("how", ["rewind", "reset", "streams"])
    def test_begins_from_zero_again(self, type, how):
        layer = recurrent(type)
        x = randn(STEPS, STREAMS, INPUTS, seed=9)
        first = layer.forward(x, ones())
        assert not torch.allclose(layer.forward(x, ones()), first)
        if how == "streams":
            for streams in (STREAMS + 1, STREAMS):
                layer.reshape([(STEPS, streams, INPUTS), (STEPS, streams)])
        else:
            getattr(layer, how)()
        torch.testing.assert_close(layer.forward(x, ones()), first)


@pytest.mark.parametrize(("type", "states"), [("RNN", 1), ("LSTM", 2)])
def test_exposed_states_take_and_give_what_is_carried_else(type, states):
    shapes = [(STEPS, STREAMS, INPUTS), (STEPS, STREAMS), *[(1, STREAMS, OUTPUTS)] * states]
    exposed, carrying = make(type, *shapes, tops=1 + states, param=EXPOSED), recurrent(type)
    for blob, other in zip(exposed.blobs, carrying.blobs, strict=True):
        blob.tensor = other.tensor
    x = randn(STEPS, STREAMS, INPUTS, seed=9)
    initial = [torch.zeros(1, STREAMS, OUTPUTS, dtype=torch.float64, requires_grad=True) for _ in range(states)]
    top, *final = exposed.forward(x, ones(), *initial)
    assert [tuple(tensor.shape) for tensor in (top, *final)] == exposed.top_shapes
    torch.testing.assert_close(top, carrying.forward(x, ones()))
    second = exposed.forward(x, ones(), *final)[0]
    torch.testing.assert_close(second, carrying.forward(x, ones()))
    assert not any(state.requires_grad for state in final)
    assert torch.autograd.grad(top.sum(), initial, allow_unused=True) == (None,) * states
    assert exposed.undifferentiable == (1, *range(2, 2 + states))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize(("shapes", "param", "message"), [
    ([(5, 3, 4), (5, 3)], "", "recurrent_param.num_output is 0"),
    ([(5,), (5,)], PARAM, "the input must be steps x streams x"),
    ([(5, 3, 4), (5, 2)], PARAM, r"the sequence markers must be 5 3 \(15\) .* found 5 2 \(10\)"),
    ([(5, 3, 4), (5, 3), (2, 1)], PARAM, "the static input must have the 3 streams on axis 0"),
    ([(5, 3, 4), (5, 3)], EXPOSED, "with expose_hidden, a .* layer takes"),
    ([(5, 3, 4), (5, 3), (3, 1), (1, 3, 2)], PARAM, "without expose_hidden, a .* layer takes 2 bottoms"),
])
def test_blobs_that_do_not_fit(type, shapes, param, message):
    with pytest.raises(NetError, match=message):
        make(type, *shapes, param=param)


def test_initial_state_of_another_shape():
    with pytest.raises(NetError, match=r"an initial state must be 1 3 2 \(6\), found 3 2 \(6\)") as caught:
        make("RNN", (5, 3, 4), (5, 3), (3, 2), tops=2, param=EXPOSED)
    assert caught.value.blob == "b2"


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize(("x", "message"), [
    ((4, 3, 4), "the layer is made for 5 steps"), ((5, 3, 6), "the weights are for 4 input and 0 static input values"),
])
def test_only_the_streams_may_change(type, x, message):
    layer = recurrent(type)
    assert layer.reshape([(5, 7, 4), (5, 7)]) == [(5, 7, OUTPUTS)]
    with pytest.raises(NetError, match=message):
        layer.reshape([x, x[:2]])


class TestLSTMUnit:
    def test_markers_cut_off_the_cell_state(self):
        layer = make("LSTMUnit", (1, 2, 3), (1, 2, 12), (1, 2), tops=2)
        c_prev, gates = randn(1, 2, 3), randn(1, 2, 12, seed=1)
        c, h = layer.forward(c_prev, gates, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
        i, f, o, g = gates.chunk(4, 2)
        fresh = i.sigmoid() * g.tanh()
        torch.testing.assert_close(c[0, 0], fresh[0, 0])
        torch.testing.assert_close(c[0, 1], (fresh + f.sigmoid() * c_prev)[0, 1])
        torch.testing.assert_close(h, o.sigmoid() * c.tanh())
        grad, _ = gradient(c, c_prev, gates)
        assert not grad[0, 0].any()

    @pytest.mark.parametrize(("shapes", "message"), [
        ([(2, 2, 3), (2, 2, 12), (2, 2)], "the cell state must be 1 x streams x size"),
        ([(1, 2, 3), (1, 2, 9), (1, 2)], r'"b1" must be 1 2 12 \(24\), found 1 2 9'),
        ([(1, 2, 3), (1, 2, 12), (2,)], r'"b2" must be 1 2 \(2\), found 2'),
    ])
    def test_blobs_that_do_not_fit(self, shapes, message):
        with pytest.raises(NetError, match=message):
            make("LSTMUnit", *shapes, tops=2)
