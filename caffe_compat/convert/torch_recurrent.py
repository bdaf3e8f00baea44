"""Recurrent layers as torch modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graph import Node
from .torch_module import TORCH, Module, module, weighted


@TORCH.add("RNN")
def rnn(node: Node) -> Module:
    return _recurrent(node, RNN, "weight_hh", "weight_ho", "bias_o")


@TORCH.add("LSTM")
def lstm(node: Node) -> Module:
    return _recurrent(node, LSTM, "weight_hh")


def _recurrent(node: Node, cls: type[nn.Module], *own: str) -> Module:
    static = ["weight_static"] * node.layer._static
    size, inputs = node.params[-1].shape[0] if cls is RNN else node.params[-1].shape[1], node.params[0].shape[1]
    widths = [node.params[2].shape[1]] if static else []
    made = module(cls, inputs, size, *widths)
    return weighted(node, made, "weight_ih", "bias_h", *static, *own)


class Recurrent(nn.Module):
    """A recurrent layer over x (steps x streams x ...); cont (steps x streams) is 0 where a stream begins anew, else 1.

    A static input (streams x ...), if there is one, is seen at every step. Called with initial states, which are
    1 x streams x size each, it returns the final ones too; else it goes on from where the last call ended, until
    `reset`. No gradient passes from call to call.
    """

    states = gates = 1

    def __init__(self, inputs: int, size: int, static: int = 0) -> None:
        super().__init__()
        self.size = size
        self.carried: tuple[Tensor, ...] | None = None
        self.weight_ih = nn.Parameter(torch.zeros(self.gates * size, inputs))
        self.bias_h = nn.Parameter(torch.zeros(self.gates * size))
        self.weight_static = nn.Parameter(torch.zeros(self.gates * size, static)) if static else None
        self.weight_hh = nn.Parameter(torch.zeros(self.gates * size, size))

    def reset(self) -> None:
        """Lets all streams begin anew."""
        self.carried = None

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        inflow = F.linear(x.flatten(2) if x.dim() > 2 else x.unsqueeze(2), self.weight_ih, self.bias_h)
        if self.weight_static is not None:
            inflow = inflow + F.linear(others[0].flatten(1), self.weight_static)
            others = others[1:]
        state = tuple(other.detach().squeeze(0) for other in others) or self.carried
        if state is None or state[0].shape[0] != x.shape[1]:
            state = tuple(x.new_zeros(x.shape[1], self.size) for _ in range(self.states))
        tops = []
        for step, more in zip(inflow.unbind(0), cont.unsqueeze(2).unbind(0)):
            state = self.step(step + F.linear(state[0] * more, self.weight_hh), more, state)
            tops.append(state[0])
        top, final = self.output(torch.stack(tops)), tuple(values.detach() for values in state)
        if others:
            return (top, *(values.unsqueeze(0) for values in final))
        self.carried = final
        return top

    def output(self, h: Tensor) -> Tensor:
        """What the layer shows of its states over time."""
        return h


class RNN(Recurrent):
    """h_t = tanh(W_hh h_(t-1) + W_ih x_t + b_h), o_t = tanh(W_ho h_t + b_o)."""

    def __init__(self, inputs: int, size: int, static: int = 0) -> None:
        super().__init__(inputs, size, static)
        self.weight_ho = nn.Parameter(torch.zeros(size, size))
        self.bias_o = nn.Parameter(torch.zeros(size))

    def step(self, inflow: Tensor, cont: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next state."""
        return (inflow.tanh(),)

    def output(self, h: Tensor) -> Tensor:
        """The outputs o."""
        return F.linear(h, self.weight_ho, self.bias_o).tanh()


class LSTM(Recurrent):
    """c = f c_prev + i g, h = o tanh(c), with the gates i, f, o, g one after the other."""

    states, gates = 2, 4

    def step(self, inflow: Tensor, cont: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next h and c."""
        i, f, o, g = inflow.chunk(4, -1)
        c = cont * f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


@TORCH.add("LSTMUnit")
def lstm_unit(node: Node) -> Module:
    return module(LSTMUnit)


class LSTMUnit(nn.Module):
    """One step of an LSTM: c = f c_prev + i g, h = o tanh(c); cont is 0 where a stream begins anew."""

    def forward(self, c_prev: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o, g = gates.chunk(4, -1)
        c = cont.unsqueeze(-1) * f.sigmoid() * c_prev + i.sigmoid() * g.tanh()
        return c, o.sigmoid() * c.tanh()
