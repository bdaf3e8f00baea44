"""`caffe-compat device_query`: what the CUDA devices are."""

from __future__ import annotations

import argparse
import logging

import torch

from ..errors import SolverError
from .flags import device_of, flag

log = logging.getLogger(__name__)

HELP = "show GPU diagnostic information"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--gpu: one device, or all."""
    flag(parser, "gpu", default="all", help="the GPU to ask (default all)")


def run(args: argparse.Namespace) -> None:
    """Logs a block of lines a device."""
    if args.gpu != "all":
        numbers = [device_of(args.gpu).index]
    else:
        numbers = list(range(torch.cuda.device_count()))
        if not numbers:
            raise SolverError("no CUDA device is available")
    for number in numbers:
        device = torch.cuda.get_device_properties(number)
        log.info("Device id:                     %d", number)
        log.info("Major revision number:         %d", device.major)
        log.info("Minor revision number:         %d", device.minor)
        log.info("Name:                          %s", device.name)
        log.info("Total global memory:           %d", device.total_memory)
        log.info("Number of multiprocessors:     %d", device.multi_processor_count)
