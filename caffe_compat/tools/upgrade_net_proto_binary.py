"""`caffe-compat upgrade_net_proto_binary`: rewrites weights of any age (V0, V1) in today's form."""

from __future__ import annotations

import argparse
import logging

from .. import proto
from .upgrade_net_proto_text import add_arguments, refuse, upgrade

__all__ = ["HELP", "add_arguments", "run"]

log = logging.getLogger(__name__)

HELP = "rewrite old weights (caffemodel) in today's form"


def run(args: argparse.Namespace) -> None:
    """Reads, upgrades, writes; logs what was changed."""
    document = proto.read_binary(args.input, "NetParameter", upgrade=False)
    problems = upgrade(document)
    proto.write_binary(args.output, document)
    log.info("Wrote upgraded NetParameter binary proto to %s", args.output)
    refuse(document, problems)
