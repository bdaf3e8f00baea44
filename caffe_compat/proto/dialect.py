"""Dialects: the schemas of BVLC Caffe and of its forks, each in a private descriptor pool, built when first used.

Forks reuse each other's field numbers, so there is no schema that fits all. A fork is an overlay file, which says
only what differs, and one registry entry:

    DIALECTS.add("myfork")(Dialect.from_overlay("myfork", "myfork.proto"))
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from ..errors import ParseError, UnknownType
from ..registry import Registry
from . import schema

_HERE = Path(__file__).parent
_LOCK = threading.Lock()
_OWNERS: dict[DescriptorPool, Dialect] = {}


class Dialect:
    """A schema by `name`: the messages of `paths[0]`, with the overlays `paths[1:]` laid over them in turn."""

    def __init__(self, name: str, *paths: str | Path) -> None:
        self.name = name
        self.paths = paths
        self._built: dict[str, Descriptor] | None = None

    @classmethod
    def from_overlay(cls, name: str, path: str | Path, base: Dialect | None = None) -> Dialect:
        """The dialect that differs from `base` (BVLC if None) by what the .proto file at `path` says."""
        return cls(name, *(base or BVLC).paths, path)

    def message(self, name: str) -> Any:
        """The class of the message `name`, as in `message("NetParameter")()`; `UnknownType` if there is none."""
        return message_factory.GetMessageClass(self.descriptor(name))

    def descriptor(self, name: str) -> Descriptor:
        """The descriptor of the message `name`; `UnknownType` if there is none."""
        try:
            return self._messages[name]
        except KeyError:
            raise UnknownType("message", name, self._messages, f"dialect {self.name}") from None

    @property
    def messages(self) -> dict[str, Descriptor]:
        """Every top-level message, by name."""
        return dict(self._messages)

    @property
    def _messages(self) -> dict[str, Descriptor]:
        if self._built is None:
            with _LOCK:  # there must be one pool only, whichever thread asks first
                self._built = self._built or self._build()
        return self._built

    def _build(self) -> dict[str, Descriptor]:
        root = schema.read_schema(self.paths[0])
        for path in self.paths[1:]:
            root = schema.merge(root, schema.read_schema(path))
        file = schema.to_file(root, f"{self.name}.proto", str(self.paths[-1]))
        pool = DescriptorPool()
        try:
            pool.Add(file)
            messages = dict(pool.FindFileByName(file.name).message_types_by_name)
        except (TypeError, KeyError) as error:
            raise ParseError(f"not a usable schema: {error}", str(self.paths[-1])) from None
        _OWNERS[pool] = self
        return messages

    def __repr__(self) -> str:
        return f"Dialect({self.name})"


#: The known dialects, by name.
DIALECTS: Registry[Dialect] = Registry("dialect")
BVLC = DIALECTS.add("bvlc")(Dialect("bvlc", _HERE / "caffe.proto"))
INCREG = DIALECTS.add("increg")(Dialect.from_overlay("increg", _HERE / "increg.proto"))
SSD = DIALECTS.add("ssd")(Dialect.from_overlay("ssd", _HERE / "ssd.proto"))


def all_dialects() -> list[Dialect]:
    """Every known dialect, in the order in which a file's dialect is looked for: BVLC, then the others by name."""
    others = [DIALECTS.get(name) for name in DIALECTS.names()]
    return [BVLC, *(dialect for dialect in others if dialect is not BVLC)]


def dialect_of(message: Any) -> Dialect:
    """The dialect whose schema a message was made from."""
    return _OWNERS[message.DESCRIPTOR.file.pool]


def enum_name(message: Any, field: str) -> str:
    """The name of an enum field's current value: `enum_name(pooling_param, "pool")` is "MAX"."""
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    return enum.values_by_number[getattr(message, field)].name


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field holds a list; protobuf 5 has no such property, later ones are to lose `label`."""
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
