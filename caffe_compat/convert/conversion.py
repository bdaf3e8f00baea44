"""`convert`: a model file and its weights to a target, checked, written whole or not at all; and `to_caffe`, the way back."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import proto
from ..check.report import Report as Comparison
from ..errors import CaffeError, NetError, did_you_mean
from ..net import Net
from ..proto import Document
from ..registry import Registry
from ..trust import confined_to
from ..weights import STRICT, LoadOptions, LoadReport, copy_weights
from .compare import compare, random_inputs
from .graph import Graph, is_input
from .passes import drop_identities, passes_for
from .targets import HANDLED, TARGETS, Options

#: How far from Caffe's a blob may be, in standard deviations, where weights are in float16: that keeps 11 bits, which over
#: the 53 layers of a MobileNet V2 adds up to 0.06.
HALF_TOLERANCE = 0.1


@dataclass(frozen=True)
class Importer:
    """How a kind of file is turned back into a Caffe model.

    `read(path, inputs)` gives the NetParameter with its blobs; `inputs` are the shapes of inputs that the file leaves
    open. `run(path, inputs)` gives the file's outputs, to check the result; None where that would run code of the file's.
    """

    read: Callable[[str, Mapping[str, Sequence[int]]], Document]
    run: Callable[[str, Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None = None


#: By the ending of the file's name ("/" for a folder).
IMPORTERS: Registry[Importer] = Registry("kind of file to import")


@dataclass
class Report:
    """What a conversion did: the weights that were loaded, and how far each blob of the result is from Caffe's, if checked."""

    weights: LoadReport | None = None
    comparison: Comparison | None = None


def open_net(
    model: str | os.PathLike[str] | Document, weights: str | os.PathLike[str] | Document | None = None,
    phase: str = "TEST", *, level: int | None = None, stages: Sequence[str] = (),
    inputs: Mapping[str, Sequence[int]] | None = None, loading: LoadOptions = STRICT, allow_paths: bool = False,
) -> tuple[Net, LoadReport | None]:
    """The net of a prototxt with its weights, to be converted, and what was loaded.

    `inputs` gives blobs new shapes; a layer that reads its tops from data becomes an Input layer of those shapes, and
    needs no data (a label's shape is the batch size unless given). `loading` says what of the weight file goes where;
    by default every layer with parameters must be in it. Files that the net itself names are opened only in its own
    folder and the working folder, unless `allow_paths`.
    """
    document = model if isinstance(model, Document) else proto.read_text(os.fspath(model), "NetParameter")
    document = _prepared(document, dict(inputs or {}), weights is not None and not loading.skip)
    with confined_to(document.path, allow_paths):
        net = Net(document, phase, level=level, stages=stages, seed=0)
    unknown = [name for name in inputs or {} if name not in net.blobs]
    if unknown:
        raise NetError(f'{net.path}: has no blob "{unknown[0]}"{did_you_mean(unknown[0], net.blobs)} to give a shape to; '
                       f"its inputs: {', '.join(net.inputs) or 'none'}", blob=unknown[0])
    return net, None if weights is None else copy_weights(net, weights, loading)


def _prepared(document: Document, shapes: dict[str, Sequence[int]], filled: bool) -> Document:
    """The document with Input layers for sources whose shape is given, and without fillers where weights will come."""
    message = type(document.message)()
    message.CopyFrom(document.message)
    for spec in message.layer:
        reads = HANDLED.get(spec.type) == HANDLED["Input"] or spec.type == "DummyData"
        if reads and any(top in shapes for top in spec.top):
            batch = next(shapes[top] for top in spec.top if top in shapes)[:1]
            given = [shapes.get(top, batch) for top in spec.top]
            if spec.type == "Input" and len(spec.input_param.shape) == len(spec.top):
                old = [list(shape.dim) for shape in spec.input_param.shape]
                given = [shapes.get(top, shape) for top, shape in zip(spec.top, old)]
            spec.type = "Input"
            spec.ClearField("input_param")
            for shape in given:
                spec.input_param.shape.add(dim=shape)
        if filled:  # random numbers for a VGG-16 take longer than all the rest
            for field_name in ("convolution_param", "inner_product_param"):
                if spec.HasField(field_name):
                    getattr(spec, field_name).ClearField("weight_filler")
    return Document(message, document.dialect, document.path, document.lines, notes=document.notes)


def convert(
    model: str | os.PathLike[str] | Document, weights: str | os.PathLike[str] | Document | None, target: str,
    out: str | os.PathLike[str], *, phase: str = "TEST", level: int | None = None, stages: Sequence[str] = (),
    inputs: Mapping[str, Sequence[int]] | None = None, loading: LoadOptions = STRICT, allow_paths: bool = False,
    options: Options | None = None, check: bool = True, tolerance: float = 1e-4,
) -> Report:
    """Converts a prototxt and its weights to `target` ("torch", "onnx", ...), at `out`; see `open_net` and `Options`.

    With `check`, what was written is read back and run on a random input, and every blob that it shows is compared with
    Caffe's: where one differs by more than `tolerance` of its standard deviation, `CaffeError` names the first, and
    nothing is left at `out`. Raises `UnsupportedLayer` for a layer that the target has no equivalent for.
    """
    options = options or Options()
    kind = TARGETS.get(target)
    net, loaded = open_net(model, weights, phase, level=level, stages=stages, inputs=inputs, loading=loading,
                           allow_paths=allow_paths)
    graph = Graph.of(net).run(passes_for(options))
    if kind.inference:
        drop_identities(graph)
    report = Report(loaded)
    with _staged(out) as path:
        kind.write(graph, path, options)
        if check and kind.run is not None:
            given = random_inputs(graph)
            expected = _blobs(net, graph, given, options)
            places = {blob: layer.where for layer in net.layers for blob in net.top_names[layer.name]}
            del net, graph  # or both models' weights would be in memory
            allowed = max(tolerance, HALF_TOLERANCE) if options.half else tolerance
            report.comparison = compare(expected, kind.run(path, given), os.fspath(out), allowed, places)
    return report


def _blobs(net: Net, graph: Graph, inputs: Mapping[str, np.ndarray], options: Options) -> dict[str, np.ndarray]:
    """All blobs of the net for `inputs`, which preprocessing comes before if it is built into the graph.

    A net for training is run as it would be tested, which is what can be compared.
    """
    if graph.training:
        document = graph.to_document()
        net = Net(Document(document.message, document.dialect), "TEST", seed=0)
        net.copy_from(document)
    for name, values in options.preprocessed(inputs).items():
        if net.blobs[name].shape != values.shape:
            net.blobs[name].reshape(*values.shape)
        net.blobs[name].data[...] = values
    for step in net.steps:
        step.given = step.given or is_input(step.layer)
    net.run()
    return {name: blob.tensor.detach().cpu().numpy() for name, blob in net.blobs.items()}


@contextmanager
def _staged(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to; what is there on leaving without an error goes to `out`, a file or the files of a folder."""
    target = Path(os.path.abspath(out))
    stage = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        stage.mkdir(parents=True)
    except OSError as error:
        raise CaffeError(f"{os.fspath(out)}: cannot be written: {error.strerror}") from None
    try:
        yield stage / target.name
        written = stage / target.name
        try:
            _move(written, target)
        except OSError as error:
            raise CaffeError(f"{os.fspath(out)}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _move(written: Path, target: Path) -> None:
    if not written.is_dir():
        for file in sorted(written.parent.iterdir()):  # beside the file there may be others, of the same stem
            os.replace(file, target.parent / file.name)
        return
    target.mkdir(exist_ok=True)
    new = {file.name for file in written.iterdir()}
    for old in target.glob("weights.*"):  # of another format, from an earlier export
        if old.name not in new:
            old.unlink()
    for file in written.iterdir():
        os.replace(file, target / file.name)


def to_caffe(path: str | os.PathLike[str], out: str | os.PathLike[str], *,
             inputs: Mapping[str, Sequence[int]] | None = None, check: bool = True,
             tolerance: float = 1e-4) -> tuple[Path, Path]:
    """Turns an export (a folder of ours, or whatever `IMPORTERS` knows) into `out`.prototxt and `out`.caffemodel.

    `out` may end in .h5 for HDF5 weights. Returns the two paths; they are files that BVLC Caffe loads. `inputs` are the
    shapes of inputs that the export leaves open. With `check`, an ONNX file's outputs on a random input are compared with
    those of the result, before it is written (an export to torch is not run, as that would be code).
    """
    source = Path(path)
    if not source.exists():
        raise CaffeError(f"{source}: there is no such file or folder")
    importer = IMPORTERS.get("/" if source.is_dir() else source.suffix, os.fspath(path))
    document = importer.read(os.fspath(path), dict(inputs or {}))
    hdf5 = os.fspath(out).endswith(".h5")
    stem = os.fspath(out).removesuffix(".h5").removesuffix(".caffemodel").removesuffix(".prototxt")
    text, binary = Path(f"{stem}.prototxt"), Path(f"{stem}.caffemodel{'.h5' if hdf5 else ''}")
    if hdf5:
        _name_for_groups(document.message)
    net = _net_of(document)
    if check and importer.run is not None:
        given = random_inputs(Graph.of(net))
        expected = importer.run(os.fspath(path), given)
        for name, values in given.items():
            net.blobs[name].data[...] = values
        net.run()
        found = {name: net.blobs[name].tensor.detach().numpy() for name in expected}
        compare(expected, found, str(text), tolerance, reference=os.fspath(path))
    net.save(binary)
    proto.write_text(text, _without_blobs(document.message))
    return text, binary


def _name_for_groups(message: Any) -> None:
    """Takes slashes out of layers' names: in HDF5 a name is that of a group, which BVLC Caffe makes without those above."""
    taken = {layer.name for layer in message.layer}
    for layer in message.layer:
        if "/" in layer.name:
            layer.name = layer.name.replace("/", "_")
            while layer.name in taken:
                layer.name += "_"
            taken.add(layer.name)


def _net_of(document: Document) -> Net:
    message = _without_blobs(document.message)
    net = Net(Document(message, document.dialect), phase_of(message), seed=0)
    net.copy_from(document)
    return net


def _without_blobs(message: Any) -> Any:
    bare = type(message)()
    bare.CopyFrom(message)
    for layer in bare.layer:
        layer.ClearField("blobs")
    return bare


def phase_of(message: Any) -> int:
    """The phase that a NetParameter is for, TEST if it does not say."""
    return message.state.phase if message.HasField("state") and message.state.HasField("phase") else 1
