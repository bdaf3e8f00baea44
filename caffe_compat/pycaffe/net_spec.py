"""pycaffe's NetSpec: nets written as Python expressions.

    from caffe_compat import NetSpec, layers as L, params as P

    n = NetSpec()
    n.data = L.Input(shape={"dim": [1, 3, 32, 32]})
    n.conv1 = L.Convolution(n.data, num_output=8, kernel_size=3)
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    print(n.to_proto())

`L.<Type>(*inputs, **fields)` makes one layer and returns its top, a tuple of `ntop` tops, or with ntop=0 the layer
itself. A field belongs to the type's own message (`num_output` to convolution_param) or else to LayerParameter (`name`,
`param`, `include`, `loss_weight`...). Tops without a name of their own get the type and a number: `Convolution1`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

from ..errors import NetError, UnknownType, did_you_mean
from ..proto import BVLC, Dialect


class NoSuchName(NetError, AttributeError, KeyError):
    """A field, enum value or top that does not exist (pycaffe raises AttributeError or KeyError)."""

    __str__ = Exception.__str__  # KeyError's would put the message in quotes


class WrongValue(NetError, TypeError, ValueError):
    """A value that does not fit its field, or an input that is no top (pycaffe raises TypeError or ValueError)."""


class Top:
    """One blob that a layer makes: top number `n` of the layer `fn`."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn = fn
        self.n = n

    def to_proto(self, dialect: Dialect = BVLC) -> Any:
        """The NetParameter of all layers that this top needs."""
        return to_proto(self, dialect=dialect)


class Function:
    """One layer: its type, its inputs (tops of other layers) and its fields, as they were given."""

    def __init__(self, type_name: str, inputs: tuple[Top, ...], params: dict[str, Any]) -> None:
        for index, top in enumerate(inputs):
            if not isinstance(top, Top):
                raise WrongValue(f"{type_name} input {index} is not a Top (type is {type(top)})")
        self.type_name = type_name
        self.inputs = inputs
        self.params = dict(params)
        self.ntop: int = self.params.pop("ntop", 1)
        self.in_place: bool = self.params.pop("in_place", False)
        self.tops = tuple(Top(self, n) for n in range(self.ntop))

    @property
    def fn(self) -> Function:
        """The layer itself, so that a layer without tops can stand where a top does."""
        return self


class NetSpec:
    """A set of named tops, in the order in which they were assigned: `n.conv1 = ...` or `n["conv1"] = ...`.

    A top that is assigned twice keeps its last name. `n.conv1` reads the top back.
    """

    def __init__(self) -> None:
        object.__setattr__(self, "tops", {})

    def __setattr__(self, name: str, value: Top | Function) -> None:
        if not isinstance(value, Top | Function):
            raise WrongValue(f"{name} must be a Top or a layer without tops, not {type(value)}; "
                             "assign several tops one by one: n.data, n.label = L.Data(..., ntop=2)")
        self.tops[name] = value

    def __getattr__(self, name: str) -> Top | Function:
        tops = self.__dict__.get("tops", {})  # copy and pickle ask before there are any
        if name not in tops:
            raise NoSuchName(f'no top "{name}" was assigned{did_you_mean(name, tops)}')
        return tops[name]

    __setitem__ = __setattr__
    __getitem__ = __getattr__

    def to_proto(self, dialect: Dialect = BVLC) -> Any:
        """The NetParameter of all layers that the assigned tops need, under the assigned names."""
        return _write(self.tops.values(), {top: name for name, top in self.tops.items()}, dialect)


def to_proto(*tops: Top | Function, dialect: Dialect = BVLC) -> Any:
    """The NetParameter of all layers that `tops` need, every one named after its type."""
    return _write(tops, {}, dialect)


def assign_proto(proto: Any, name: str, val: Any) -> None:
    """Puts a Python value into the field `name` of a message.

    A dict fills a message, a list is appended to a repeated field, and any other value given to a repeated field is its
    only new element. Enums are numbers (`params.Pooling.MAX`), not text. Raises `NoSuchName` or `WrongValue`.
    """
    field = proto.DESCRIPTOR.fields_by_name.get(name)
    message = proto.DESCRIPTOR.name
    if field is None:
        raise NoSuchName(f"{message} has no field {name}{did_you_mean(name, proto.DESCRIPTOR.fields_by_name)}")
    values = val if isinstance(val, list | tuple) else [val]
    if not field.is_repeated and isinstance(val, list | tuple):
        raise WrongValue(f"{message}.{name} holds one value, not a list: {val!r}")
    for value in values:
        if isinstance(value, dict) != (field.message_type is not None):
            raise WrongValue(f"{message}.{name} takes {_kind(field)}, not {value!r}")
        if isinstance(value, dict):
            inner = getattr(proto, name)
            inner = inner.add() if field.is_repeated else inner
            for key, item in value.items():
                assign_proto(inner, key, item)
            continue
        if field.enum_type is not None and isinstance(value, str):
            raise WrongValue(f"{message}.{name} takes {_kind(field)}, not {value!r}")
        try:
            getattr(proto, name).append(value) if field.is_repeated else setattr(proto, name, value)
        except (TypeError, ValueError) as error:
            raise WrongValue(f"cannot set {message}.{name} to {value!r}: {error}") from None


def _kind(field: Any) -> str:
    if field.message_type is not None:
        return f"a dict of {field.message_type.name}'s fields"
    if field.enum_type is not None:
        owner = field.enum_type.containing_type or field.containing_type
        prefix = f"params.{owner.name.removesuffix('Parameter')}."
        return "one of " + ", ".join(prefix + value.name for value in field.enum_type.values)
    return "a plain value"


def _write(tops: Iterable[Top | Function], names: dict[Top | Function, str], dialect: Dialect) -> Any:
    """The NetParameter of the layers under `tops`, inputs first; `names` are those that the user gave."""
    names, counts = dict(names), Counter()
    written: dict[Function, Any] = {}

    def name_of(part: Top | Function) -> str:
        if part not in names:
            counts[part.fn.type_name] += 1
            names[part] = f"{part.fn.type_name}{counts[part.fn.type_name]}"
        return names[part]

    for top in tops:
        waiting = [top.fn]
        while waiting:  # not a recursion: nets are deeper than Python's stack
            fn = waiting[-1]
            missing = [source.fn for source in fn.inputs if source.fn not in written]
            if fn not in written and missing:
                waiting.extend(reversed(missing))
                continue
            waiting.pop()
            if fn not in written:
                bottoms = [written[source.fn].top[source.n] for source in fn.inputs]
                outputs = bottoms if fn.in_place else [name_of(each) for each in fn.tops]
                # The layer is called as its first top is, even where that top is the input, changed in place.
                written[fn] = _layer(fn, name_of(fn.tops[0] if fn.tops else fn), bottoms, outputs, dialect)
    return dialect.message("NetParameter")(layer=written.values())


def _layer(fn: Function, name: str, bottoms: list[str], tops: list[str], dialect: Dialect) -> Any:
    spec = dialect.message("LayerParameter")(name=name, type=fn.type_name, bottom=bottoms, top=tops)
    own = _param_fields(dialect).get(fn.type_name)
    own_fields = spec.DESCRIPTOR.fields_by_name[own].message_type.fields_by_name if own else {}
    for key, value in fn.params.items():
        try:
            if key in own_fields and not key.endswith("param"):
                assign_proto(spec, own, {key: value})
            elif key in spec.DESCRIPTOR.fields_by_name:
                assign_proto(spec, key, value)
            else:
                raise NoSuchName(f"neither LayerParameter nor {own or 'a message of its own'} has a field {key}"
                                 f"{did_you_mean(key, [*own_fields, *spec.DESCRIPTOR.fields_by_name])}")
        except (NoSuchName, WrongValue) as error:
            raise type(error)(f'{fn.type_name} layer "{name}": {error}', layer=name) from None
    return spec


@cache
def _param_fields(dialect: Dialect) -> dict[str, str]:
    """Layer type -> the LayerParameter field of its settings, read off the messages' names: ReLU -> relu_param."""
    fields = dialect.descriptor("LayerParameter").fields
    return {field.message_type.name.removesuffix("Parameter"): field.name
            for field in fields if field.name.endswith("_param")}


def _is_private(name: str) -> bool:
    """Whether Python itself asks (copy, inspect, hasattr...), which must not make up a layer."""
    return name.startswith("__")


class Layers:
    """`layers.<Type>(*inputs, **fields)`: any layer type, those of Python layers and of forks too."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if _is_private(name):
            raise AttributeError(name)
        return partial(_make, name)


def _make(type_name: str, /, *inputs: Top, **fields: Any) -> Top | tuple[Top, ...] | Function:
    fn = Function(type_name, inputs, fields)
    if fn.ntop == 0:
        return fn
    return fn.tops[0] if fn.ntop == 1 else fn.tops


class Parameters:
    """`params.<Message>.<VALUE>`: the number of an enum value, as in `params.Pooling.MAX` of PoolingParameter."""

    def __init__(self, dialect: Dialect = BVLC) -> None:
        self._dialect = dialect

    def __getattr__(self, name: str) -> Any:
        if _is_private(name):
            raise AttributeError(name)
        try:
            return _Values(self._dialect.descriptor(f"{name}Parameter"))
        except UnknownType as error:
            raise NoSuchName(str(error)) from None


class _Values:
    def __init__(self, descriptor: Any) -> None:
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> int:
        values = self._descriptor.enum_values_by_name
        if name not in values:
            raise NoSuchName(f"{self._descriptor.name} has no value {name}{did_you_mean(name, values)}; "
                             f"it has {', '.join(values) or 'none'}")
        return values[name].number


layers = Layers()
params = Parameters()
