"""Recurrent layers over sequences: RNN, LSTM, and one step of the latter, LSTMUnit.

A batch holds T time steps of N independent streams; cont is 0 where a stream begins a new sequence, else 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Layer, Shape, format_shape, layer


class _Recurrent(Layer):
    """What RNN and LSTM share (RecurrentParameter).

    Bottoms: x (T x N x ...), cont (T x N), then optionally a static input (N x ...) that every step sees and, with
    `expose_hidden`, the initial states (1 x N x num_output each). Tops: the outputs (T x N x num_output) and, with
    `expose_hidden`, the final states.

    Without `expose_hidden` every forward pass starts from the final states of the one before, at first from 0, and no
    gradient passes from one to the other. Nor does one with it: initial states get none and those of final states are
    ignored, as in Caffe (case LSTM_expose_seeded).
    """

    #: How many states are carried, and how many times num_output the input of a step is.
    states: ClassVar[int]
    gates: ClassVar[int]

    def setup(self, shapes: Sequence[Shape]) -> None:
        p = self.param
        if p.num_output < 1:
            raise self.error(f"recurrent_param.num_output is {p.num_output}; give it a positive number")
        exposed = self.states if p.expose_hidden else 0
        bottoms, tops = len(self.spec.bottom), len(self.spec.top)
        if bottoms - exposed not in (2, 3) or tops != 1 + exposed:
            raise self.error(f"{'with' if exposed else 'without'} expose_hidden, a {self.type} layer takes "
                             f"{2 + exposed} bottoms (or one more, a static input) and {1 + exposed} tops; found "
                             f"{bottoms} and {tops}")
        self._static = bottoms - exposed == 3
        self._initial = 2 + self._static
        self.undifferentiable = (1, *range(self._initial, bottoms))
        self._state: tuple[Tensor, ...] | None = None
        self._check_shapes(shapes)
        self._steps = shapes[0][0]
        self._widths = [prod(shapes[0][2:]), prod(shapes[2][1:]) if self._static else 0]
        outputs = self.gates * p.num_output
        self.add_param((outputs, self._widths[0]), p.weight_filler)
        self.add_param((outputs,), p.bias_filler)
        if self._static:
            self.add_param((outputs, self._widths[1]), p.weight_filler)
        self.add_param((outputs, p.num_output), p.weight_filler)

    def _check_shapes(self, shapes: Sequence[Shape]) -> None:
        x, cont = shapes[0], shapes[1]
        if len(x) < 2:
            raise self.error(f"the input must be steps x streams x ..., found {format_shape(x)}", self.spec.bottom[0])
        if cont != x[:2]:
            raise self.error(f"the sequence markers must be {format_shape(x[:2])} (steps x streams), found "
                             f"{format_shape(cont)}", self.spec.bottom[1])
        if self._static and shapes[2][:1] != x[1:2]:
            raise self.error(f"the static input must have the {x[1]} streams on axis 0, found "
                             f"{format_shape(shapes[2])}", self.spec.bottom[2])
        for name, shape in zip(self.spec.bottom[self._initial:], shapes[self._initial:]):
            if shape != (1, x[1], self.param.num_output):
                raise self.error(f"an initial state must be {format_shape((1, x[1], self.param.num_output))}, found "
                                 f"{format_shape(shape)}", name)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        self._check_shapes(shapes)
        x = shapes[0]
        if x[0] != self._steps:
            raise self.error(f"the layer is made for {self._steps} steps, found {format_shape(x)}", self.spec.bottom[0])
        widths = [prod(x[2:]), prod(shapes[2][1:]) if self._static else 0]
        if widths != self._widths:
            raise self.error(f"the weights are for {self._widths[0]} input and {self._widths[1]} static input values a "
                             f"stream, found {widths[0]} and {widths[1]}", self.spec.bottom[0])
        state = (x[1], self.param.num_output)
        if self._state is None or self._state[0].shape != state:
            self._state = tuple(torch.zeros(state, device=self.context.device) for _ in range(self.states))
        return [(*x[:2], state[1])] + [(1, *state)] * (len(self.spec.top) - 1)

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        x, cont, *others = bottoms
        weights = [blob.tensor for blob in self.blobs]
        inputs = F.linear(x.flatten(2) if x.dim() > 2 else x.unsqueeze(2), weights[0], weights[1])
        if self._static:
            inputs = inputs + F.linear(others.pop(0).flatten(1), weights[2])
        carried = tuple(state.detach().squeeze(0) for state in others) or self._state
        top, final = self.unroll(inputs.unbind(0), cont.unsqueeze(2).unbind(0), carried, weights[2 + self._static:])
        final = tuple(state.detach() for state in final)
        if others:
            return (top, *(state.unsqueeze(0) for state in final))
        self._state = final
        return top

    def unroll(
        self, inputs: Sequence[Tensor], conts: Sequence[Tensor], states: tuple[Tensor, ...], weights: list[Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All outputs (T x N x num_output) and the final states, from the inputs and markers of each step.

        Inputs are N x (gates * num_output), markers N x 1, states N x num_output; `weights` are the blobs after those
        of the inputs.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Sets the carried states to 0."""
        self._state = tuple(torch.zeros_like(state) for state in self._state)

    rewind = reset

    def state(self) -> dict[str, Any]:
        return {"carried": [state.tolist() for state in self._state]}

    def load_state(self, state: dict[str, Any]) -> None:
        carried = tuple(torch.tensor(values, device=self.context.device) for values in state["carried"])
        if [values.shape for values in carried] != [values.shape for values in self._state]:
            raise self.error(f"the states to resume from are {[tuple(values.shape) for values in carried]}, this net's "
                             f"are {[tuple(values.shape) for values in self._state]}")
        self._state = carried


@layer("RNN", bottoms=(2, 4), tops=(1, 2), param="recurrent_param")
class RNN(_Recurrent):
    """h_t = tanh(W_hh (cont_t h_(t-1)) + W_xh x_t + W_xh_static s + b_h), o_t = tanh(W_ho h_t + b_o).

    Blobs: W_xh, b_h, W_xh_static if there is a static input s, W_hh, W_ho, b_o. What holds for bottoms, tops and
    states: see `_Recurrent`.
    """

    states = 1
    gates = 1

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        outputs = self.param.num_output
        self.add_param((outputs, outputs), self.param.weight_filler)
        self.add_param((outputs,), self.param.bias_filler)

    def unroll(
        self, inputs: Sequence[Tensor], conts: Sequence[Tensor], states: tuple[Tensor, ...], weights: list[Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        recurrent, output, bias = weights
        recurrent = recurrent.t()
        (h,) = states
        hidden = []
        for inflow, cont in zip(inputs, conts):
            h = torch.addmm(inflow, h * cont, recurrent).tanh()
            hidden.append(h)
        return F.linear(torch.stack(hidden), output, bias).tanh(), (h,)


@layer("LSTM", bottoms=(2, 5), tops=(1, 3), param="recurrent_param")
class LSTM(_Recurrent):
    """At every step an LSTMUnit, fed with W_hc (cont_t h_(t-1)) + W_xc x_t + W_xc_static s + b_c; the output is h.

    Blobs: W_xc, b_c, W_xc_static if there is a static input s, W_hc; the gates i, f, o, g one after the other on their
    first axis. The states are h, c. What holds for bottoms, tops and states: see `_Recurrent`.
    """

    states = 2
    gates = 4

    def unroll(
        self, inputs: Sequence[Tensor], conts: Sequence[Tensor], states: tuple[Tensor, ...], weights: list[Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        recurrent = weights[0].t()
        h, c = states
        hidden = []
        for inflow, cont in zip(inputs, conts):
            c, h = lstm_unit(c, torch.addmm(inflow, h * cont, recurrent), cont)
            hidden.append(h)
        return torch.stack(hidden), (h, c)


@layer("LSTMUnit", bottoms=3, tops=2, undifferentiable=(2,))
class LSTMUnit(Layer):
    """One LSTM step (Hochreiter and Schmidhuber 1997): c = f c_prev + i g, h = o tanh(c).

    i, f, o = sigmoid and g = tanh of the four gate inputs, f times cont. Bottoms: c_prev (1 x N x D), gate inputs
    (1 x N x 4 D in the order i, f, o, g), cont (1 x N); tops: c, h. The gradient of f is f (1 - f), as in Caffe, which
    is its derivative only where cont is 0 or 1 (cases LSTMUnit_cont_fraction, LSTM_cont_fraction).
    """

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        c_prev, gates, cont = shapes
        if len(c_prev) != 3 or c_prev[0] != 1:
            raise self.error(f"the cell state must be 1 x streams x size, found {format_shape(c_prev)}",
                             self.spec.bottom[0])
        expected_shapes = (*c_prev[:2], 4 * c_prev[2]), c_prev[:2]
        for name, shape, expected in zip(self.spec.bottom[1:], (gates, cont), expected_shapes):
            if shape != expected:
                raise self.error(f'with a cell state of {format_shape(c_prev)}, "{name}" must be '
                                 f"{format_shape(expected)}, found {format_shape(shape)}", name)
        return [c_prev, c_prev]

    def forward(self, c_prev: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        return lstm_unit(c_prev, gates, cont.unsqueeze(-1))


def lstm_unit(c_prev: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """c and h of `LSTMUnit`, all its blobs with a last axis of D, 4 D and 1 values."""
    i, f, o, g = gates.chunk(4, -1)
    c = _ForgetGate.apply(f, cont) * c_prev + i.sigmoid() * g.tanh()
    return c, o.sigmoid() * c.tanh()


class _ForgetGate(torch.autograd.Function):
    """f = cont * sigmoid(x), with the gradient f (1 - f)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cont: Tensor) -> Tensor:
        f = cont * x.sigmoid()
        ctx.save_for_backward(f)
        return f

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (f,) = ctx.saved_tensors
        return grad * f * (1 - f), None
