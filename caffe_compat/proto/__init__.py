"""Caffe's files: prototxt, caffemodel, solverstate and binaryproto, in the dialects of BVLC Caffe and its forks."""

from .dialect import BVLC, DIALECTS, INCREG, SSD, Dialect, all_dialects, dialect_of, enum_name, is_repeated
from .document import Document, replacing
from .text import dump_text, parse_text, read_text, write_text
from .upgrade import upgrade
from .wire import legacy_shape, read_binary, write_binary

__all__ = [
    "BVLC", "DIALECTS", "INCREG", "SSD", "Dialect", "Document", "all_dialects", "dialect_of", "dump_text", "enum_name",
    "is_repeated", "legacy_shape", "parse_text", "read_binary", "read_text", "replacing", "upgrade", "write_binary",
    "write_text",
]
