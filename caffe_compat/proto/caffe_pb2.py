"""BVLC Caffe's messages and enums under the name that scripts import: `from caffe.proto import caffe_pb2`."""

from __future__ import annotations

from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from .dialect import BVLC


def __getattr__(name: str) -> Any:
    """A message class (`LayerParameter`), an enum (`Phase`) or one of its values (`TRAIN`)."""
    if name in BVLC.messages:
        return BVLC.message(name)
    for enum in BVLC.descriptor("NetState").file.enum_types_by_name.values():
        if name == enum.name:
            return EnumTypeWrapper(enum)
        if name in enum.values_by_name:
            return enum.values_by_name[name].number
    raise AttributeError(f"module caffe_pb2 has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*BVLC.messages, "Phase", "TRAIN", "TEST"])
