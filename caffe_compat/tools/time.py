"""`caffe-compat time`: how long each layer takes, forward and backward."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from ..layers import Layer
from .flags import add_net_flags, build_net, flag, positive

log = logging.getLogger(__name__)

HELP = "benchmark a model's execution time, layer by layer"

Result = TypeVar("Result")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Caffe's flags."""
    add_net_flags(parser, "TRAIN")
    flag(parser, "weights", help="weights to copy first, separated by commas")
    flag(parser, "iterations", type=positive, default=50, help="how many passes to time (default 50)")


def run(args: argparse.Namespace) -> None:
    """Two passes to warm up, then the mean over `iterations`, in Caffe's lines."""
    net = build_net(args, args.weights, keep_blobs=True)
    log.info("Performing Forward")
    net.forward()
    log.info("Initial loss: %g", net.loss)
    log.info("Performing Backward")
    net.backward()
    wanted = net.gradients_of
    log.info("*** Benchmark begins ***")
    log.info("Testing for %d iterations.", args.iterations)
    forward, backward = dict.fromkeys(net.layer_dict, 0.0), dict.fromkeys(net.layer_dict, 0.0)
    for iteration in range(1, args.iterations + 1):
        before = sum(forward.values()) + sum(backward.values())
        for layer in net.layers:
            if layer.type == "Input":  # has nothing to do
                continue
            bottoms = [net.blobs[name].tensor.detach() for name in layer.spec.bottom]
            tops, spent = _timed(lambda: layer.forward(*bottoms), net.device)  # noqa: B023
            forward[layer.name] += spent
            for name, top in zip(layer.spec.top, tops if isinstance(tops, tuple) else (tops,)):
                net.blobs[name].tensor = top.detach()
            backward[layer.name] += _time_backward(layer, bottoms, wanted[layer.name], net.device)
        after = sum(forward.values()) + sum(backward.values())
        log.info("Iteration: %d forward-backward time: %g ms.", iteration, 1e3 * (after - before))
    log.info("Average time per layer: ")
    for name in net.layer_dict:
        log.info("%10s\tforward: %g ms.", name, 1e3 * forward[name] / args.iterations)
        log.info("%10s\tbackward: %g ms.", name, 1e3 * backward[name] / args.iterations)
    total_forward, total_backward = sum(forward.values()), sum(backward.values())
    log.info("Average Forward pass: %g ms.", 1e3 * total_forward / args.iterations)
    log.info("Average Backward pass: %g ms.", 1e3 * total_backward / args.iterations)
    log.info("Average Forward-Backward: %g ms.", 1e3 * (total_forward + total_backward) / args.iterations)
    log.info("Total Time: %g ms.", 1e3 * (total_forward + total_backward))
    log.info("*** Benchmark ends ***")


def _time_backward(layer: Layer, bottoms: Sequence[Tensor], wanted: Sequence[bool], device: torch.device) -> float:
    """Seconds that the gradients of one layer take, to the `wanted` bottoms and to its parameters; 0 if there are none."""
    leaves = [bottom.clone().requires_grad_() if want else bottom for bottom, want in zip(bottoms, wanted)]
    tops = layer.forward(*leaves)
    tops = [top for top in (tops if isinstance(tops, tuple) else (tops,)) if top.grad_fn is not None]
    targets = [tensor for tensor in (*leaves, *(blob.tensor for blob in layer.blobs)) if tensor.requires_grad]
    if not tops or not targets:
        return 0.0
    ones = [torch.ones_like(top) for top in tops]
    return _timed(lambda: torch.autograd.grad(tops, targets, ones, allow_unused=True), device)[1]


def _timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What `work` returns, and the seconds until the device is done with it."""
    start = perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, perf_counter() - start
