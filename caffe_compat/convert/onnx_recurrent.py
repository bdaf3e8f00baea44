"""ONNX operators for recurrent layers, one step after the other: Caffe's markers of new sequences are in no ONNX operator.

A file has no memory: without `expose_hidden` every run starts from states of 0, in Caffe from those of the pass before.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from .graph import Node
from .onnx_writer import ONNX, Writer
from .targets import limited

#: (input of the step, its marker, states) -> states, the first of which is the hidden one.
Step = Callable[[str, str, list[str]], list[str]]
MEMORYLESS = "without expose_hidden every run starts from states of 0"


@ONNX.add("RNN")
@limited(MEMORYLESS)
def rnn(node: Node, out: Writer) -> None:
    """Gemm and Tanh for each step."""
    recurrent, output, bias = (out.param(node, k) for k in range(len(node.params) - 3, len(node.params)))

    def step(inflow: str, cont: str, states: list[str]) -> list[str]:
        before = out.op("Mul", [states[0], cont])
        return [out.op("Tanh", [out.op("Gemm", [before, recurrent, inflow], transB=1)])]

    hidden, final = _unroll(node, out, step)
    size = node.layer.param.num_output
    flat = out.op("Reshape", [hidden, out.ints(-1, size)])
    result = out.op("Tanh", [out.op("Gemm", [flat, output, bias], transB=1)])
    out.op("Reshape", [result, out.ints(*node.out_shapes[0])], node.outputs[0])
    _expose(node, out, final)


@ONNX.add("LSTM")
@limited(MEMORYLESS)
def lstm(node: Node, out: Writer) -> None:
    """Gemm and an LSTMUnit for each step."""
    recurrent = out.param(node, len(node.params) - 1)

    def step(inflow: str, cont: str, states: list[str]) -> list[str]:
        h, c = states
        gates = out.op("Gemm", [out.op("Mul", [h, cont]), recurrent, inflow], transB=1)
        c, h = _lstm_unit(out, c, gates, cont, axis=1)
        return [h, c]

    hidden, final = _unroll(node, out, step)
    out.op("Identity", [hidden], node.outputs[0])
    _expose(node, out, final)


@ONNX.add("LSTMUnit")
def lstm_unit(node: Node, out: Writer) -> None:
    """Its formula."""
    c_prev, gates, cont = node.inputs
    c, h = _lstm_unit(out, c_prev, gates, out.op("Unsqueeze", [cont, out.ints(2)]), axis=2)
    for value, top in zip((c, h), node.outputs):
        out.op("Identity", [value], top)


def _lstm_unit(out: Writer, c_prev: str, gates: str, cont: str, axis: int) -> tuple[str, str]:
    parts = [out.name(gate) for gate in ("i", "f", "o", "g")]
    out.op("Split", [gates], parts, axis=axis)
    i, f, o = (out.op("Sigmoid", [part]) for part in parts[:3])
    kept = out.op("Mul", [out.op("Mul", [f, cont]), c_prev])
    c = out.op("Add", [kept, out.op("Mul", [i, out.op("Tanh", [parts[3]])])])
    return c, out.op("Mul", [o, out.op("Tanh", [c])])


def _unroll(node: Node, out: Writer, step: Step) -> tuple[str, list[str]]:
    """All hidden states (T x N x num_output) and the final states, by steps of the layer."""
    layer, (steps, streams, *rest) = node.layer, node.in_shapes[0]
    for value in node.inputs:
        out.fixed(value)
    size = layer.param.num_output
    flat = out.op("Reshape", [node.inputs[0], out.ints(steps * streams, prod(rest))])
    inflow = out.op("Gemm", [flat, out.param(node, 0), out.param(node, 1)], transB=1)
    inflow = out.op("Reshape", [inflow, out.ints(steps, streams, layer.gates * size)])
    others = list(node.inputs[2:])
    if layer._static:
        static = out.op("Flatten", [others.pop(0)])
        weight = out.param(node, 2)
        inflow = out.op("Add", [inflow, out.op("Gemm", [static, weight], transB=1)])
    states = [out.op("Squeeze", [value, out.ints(0)]) for value in others]
    states = states or [out.constant(np.zeros((streams, size)))] * layer.states
    inflows, conts = _each(out, inflow, steps), _each(out, out.op("Unsqueeze", [node.inputs[1], out.ints(2)]), steps)
    hidden = []
    for inflow, cont in zip(inflows, conts):
        states = step(inflow, cont, states)
        hidden.append(out.op("Unsqueeze", [states[0], out.ints(0)]))
    return out.op("Concat", hidden, axis=0), states


def _each(out: Writer, value: str, steps: int) -> list[str]:
    """The items of `value` along axis 0."""
    parts = [out.name(f"step{k}") for k in range(steps)]
    out.op("Split", [value, out.ints(*[1] * steps)], parts, axis=0)
    return [out.op("Squeeze", [part, out.ints(0)]) for part in parts]


def _expose(node: Node, out: Writer, states: list[str]) -> None:
    for state, top in zip(states, node.outputs[1:]):
        out.op("Unsqueeze", [state, out.ints(0)], top)
