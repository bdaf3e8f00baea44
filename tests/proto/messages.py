"""Random messages of any type, for hypothesis."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

from caffe_compat.proto import Dialect, is_repeated

_F = FieldDescriptor
_NUMBERS = {
    _F.TYPE_INT32: st.integers(-2**31, 2**31 - 1), _F.TYPE_INT64: st.integers(-2**63, 2**63 - 1),
    _F.TYPE_UINT32: st.integers(0, 2**32 - 1), _F.TYPE_BOOL: st.booleans(),
    _F.TYPE_FLOAT: st.floats(width=32, allow_nan=False), _F.TYPE_DOUBLE: st.floats(allow_nan=False),
    _F.TYPE_STRING: st.text(max_size=8), _F.TYPE_BYTES: st.binary(max_size=8),
}


def messages(dialect: Dialect, kind: str, without: tuple[str, ...] = ()) -> st.SearchStrategy[Any]:
    """Messages with some of their fields set, but none whose name is in `without`, at any depth."""
    descriptor = dialect.descriptor(kind)
    return st.builds(dialect.message(kind).FromString, _encoded(dialect, descriptor, without))


def _encoded(dialect: Dialect, descriptor, without: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    @st.composite
    def build(draw) -> bytes:
        message = dialect.message(descriptor.name)()
        fields = [field for field in descriptor.fields if field.name not in without]
        chosen = draw(st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda field: field.number))
        missing = [error.partition(".")[0] for error in message.FindInitializationErrors()]
        for field in chosen + [field for field in fields if field.name in missing]:
            _set(draw, dialect, message, field, without)
        return message.SerializeToString()

    return build()


def _set(draw, dialect: Dialect, message: Any, field: FieldDescriptor, without: tuple[str, ...]) -> None:
    count = draw(st.integers(1, 3)) if is_repeated(field) else 1
    if field.message_type is not None:
        for _ in range(count):
            inner = getattr(message, field.name)
            inner = inner.add() if is_repeated(field) else inner
            inner.SetInParent()
            inner.MergeFromString(draw(_encoded(dialect, field.message_type, without)))
        return
    values = st.sampled_from(list(field.enum_type.values_by_number)) if field.enum_type else _NUMBERS[field.type]
    if is_repeated(field):
        getattr(message, field.name).extend(draw(values) for _ in range(count))
    else:
        setattr(message, field.name, draw(values))
