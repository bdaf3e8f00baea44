"""`caffe-compat upgrade_net_proto_text`: rewrites a net definition of any age (V0, V1, input fields) in today's form."""

from __future__ import annotations

import argparse
import logging

from .. import proto
from ..errors import ParseError
from ..proto import Document

log = logging.getLogger(__name__)

HELP = "rewrite an old net definition (prototxt) in today's form"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Input and output."""
    parser.add_argument("input", help="the net definition to read")
    parser.add_argument("output", help="the file to write")


def run(args: argparse.Namespace) -> None:
    """Reads, upgrades, writes; logs what was changed."""
    upgrade_text(args.input, args.output, "NetParameter")


def upgrade_text(source: str, target: str, kind: str) -> None:
    """Rewrites a prototxt of message type `kind`."""
    document = proto.read_text(source, kind, upgrade=False)
    problems = upgrade(document)
    proto.write_text(target, document.message)
    log.info("Wrote upgraded %s text proto to %s", kind, target)
    refuse(document, problems)


def upgrade(document: Document) -> list[str]:
    """Upgrades in place and logs what was changed; returns what could not be carried over."""
    problems = proto.upgrade(document)
    for note in document.notes:
        log.info("%s", note)
    if not document.notes:
        log.info("File already in latest proto format: %s", document.path)
    return problems


def refuse(document: Document, problems: list[str]) -> None:
    """Raises if there are problems, after all that could be upgraded was written, as Caffe's tools do."""
    if problems:
        raise ParseError(f"could not be upgraded in full, check the result: {'; '.join(problems)}", document.path)
