"""`increg budget`: multiply-adds, parameters and memory of a net, and what pruning leaves of them, each with its rule."""

from __future__ import annotations

import argparse

from caffe_compat.net import Net
from caffe_compat.tools.flags import add_python_flag, flag
from caffe_compat.tools.show import table

from .budget import RULES, LayerBudget, budget, layer_budgets, memory

HELP = "count multiply-adds, parameters and memory of a net, before and after pruning"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The net, weights if there are any, and the rule for the lines of layers."""
    parser.add_argument("net", metavar="NET", help="the network definition (prototxt)")
    parser.add_argument("weights", metavar="WEIGHTS", nargs="?", help="pruned weights (.caffemodel); without them, nothing is")
    flag(parser, "rule", default="matrix", choices=RULES.names(), help="how to count in the lines of layers (default matrix)")
    flag(parser, "phase", default="TEST", choices=("TRAIN", "TEST"), help="the phase to look at (default TEST)")
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """A line a layer that costs something, and the sums by every rule."""
    net = Net(args.net, args.phase, keep_blobs=False)
    if args.weights:
        net.copy_from(args.weights)
    layers = layer_budgets(net, pruned=bool(args.weights))
    show_layers(layers, args.rule)
    print()
    show_rules(layers)
    parameters, blobs = memory(net)
    print(f"memory: {parameters:,} bytes of parameters, {blobs:,} bytes of blobs (float32, the batch that NET says)")
    if not args.weights:
        print("No weights were given, so nothing counts as pruned.")


def show_layers(layers: list[LayerBudget], rule: str) -> None:
    """A line for each layer that costs something by the rule."""
    lines = []
    for layer in layers:
        operations, operations_left, parameters, parameters_left = RULES.get(rule).count(layer)
        if operations or parameters:
            lines.append([layer.cost.name, layer.cost.type, f"{operations:,}", f"{operations_left:,.0f}", f"{parameters:,}",
                          f"{parameters_left:,.0f}", f"{100 * layer.kept:.1f} %"])
    table(["layer", "type", "multiply-adds", "left", "parameters", "left", "weights left"], lines)
    print(f"(rule {rule}: {RULES.get(rule).text})")


def show_rules(layers: list[LayerBudget]) -> None:
    """The sums and ratios by every rule, and what each rule counts."""
    lines = []
    for name in RULES.names():
        total = budget(layers, RULES.get(name))
        lines.append([name, f"{total.operations:,}", f"{total.operations_left:,.0f}", f"{total.speedup:.3f}x",
                      f"{total.weights:,}", f"{total.weights_left:,.0f}", f"{total.compression:.3f}x"])
    table(["rule", "multiply-adds", "left", "fewer", "parameters", "left", "fewer"], lines)
    for name in RULES.names():
        print(f"rule {name}: {RULES.get(name).text}")
