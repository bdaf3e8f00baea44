"""`caffe-compat test`: scores a model, the means of all outputs over a number of batches."""

from __future__ import annotations

import argparse
import logging

import torch

from .flags import add_net_flags, build_net, flag, positive

log = logging.getLogger(__name__)

HELP = "score a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Caffe's flags."""
    add_net_flags(parser, "TEST")
    flag(parser, "weights", required=True, help="the weights to score, separated by commas")
    flag(parser, "iterations", type=positive, default=50, help="how many batches to run (default 50)")


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    """Logs every batch's outputs, then their means."""
    net = build_net(args, args.weights)
    log.info("Running for %d iterations.", args.iterations)
    totals: dict[str, torch.Tensor] = {}
    loss = torch.zeros((), device=net.device)
    for batch in range(args.iterations):
        for name, tensor in net.forward().items():
            totals[name] = totals[name] + tensor if name in totals else tensor
            for value in tensor.flatten().tolist():
                log.info("Batch %d, %s = %g", batch, name, value)
        loss = loss + net.loss
    log.info("Loss: %g", loss / args.iterations)
    for name, total in totals.items():
        weight = net.loss_weights.get(name)
        for value in (total.flatten() / args.iterations).tolist():
            log.info("%s = %g%s", name, value, f" (* {weight:g} = {weight * value:g} loss)" if weight else "")
