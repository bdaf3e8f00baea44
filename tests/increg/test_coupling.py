"""Which rows follow which columns, in nets of every shape; and as the reference has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pruning import layer_state

from caffe_compat import Net, proto
from increg import coupling
from increg.cli import main
from increg.show_coupling import groups
from increg.state import LayerState

PROTOTXT = Path(__file__).parents[2] / "prototxt"
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } } }\n'


def conv(name: str, bottom: str, outputs: int, kernel: int = 1, more: str = "") -> str:
    return (f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ '
            f"num_output: {outputs} kernel_size: {kernel} {more} }} }}\n")


def simple(kind: str, name: str, *bottoms: str, tops: tuple[str, ...] = (), more: str = "") -> str:
    bottom = " ".join(f'bottom: "{blob}"' for blob in bottoms)
    top = " ".join(f'top: "{blob}"' for blob in tops or (name,))
    return f'layer {{ name: "{name}" type: "{kind}" {bottom} {top} {more} }}\n'


def inner(name: str, bottom: str, outputs: int = 2, more: str = "") -> str:
    return simple("InnerProduct", name, bottom, more=f"inner_product_param {{ num_output: {outputs} {more} }}")


class Traced:
    """A net's coupling, with layers by name."""

    def __init__(self, text: str, as_reference: bool = False) -> None:
        net = Net(proto.parse_text(INPUT + text, "NetParameter"), "TRAIN")
        self.layers: list[LayerState] = []
        for layer in net.layers:
            if layer.type in ("Convolution", "InnerProduct"):
                group = layer.param.group if layer.type == "Convolution" else 1
                self.layers.append(layer_state(layer.name, layer.blobs[0].shape, len(self.layers), group=group))
        self.by_name = {layer.name: layer for layer in self.layers}
        device = torch.device("cpu")
        self.links = coupling.as_reference(self.layers, device) if as_reference else coupling.from_net(net, self.layers, device)

    def prune_channels(self, name: str, *channels: int) -> None:
        """All columns of some input channels (of group 0)."""
        layer = self.by_name[name]
        columns = torch.zeros(layer.layout.columns, dtype=torch.bool)
        for channel in channels:
            columns[channel * layer.layout.positions:(channel + 1) * layer.layout.positions] = True
        layer.masks.add_columns(columns)

    def prune_rows(self, name: str, *rows: int) -> None:
        mask = torch.zeros(self.by_name[name].layout.rows, dtype=torch.bool)
        mask[list(rows)] = True
        self.by_name[name].masks.add_rows(mask)

    def idle_rows(self) -> dict[str, list[int]]:
        """Rows to drop, by layer."""
        return {self.layers[i].name: rows.nonzero().flatten().tolist() for i, rows in self.links.idle_rows(self.layers).items()}

    def idle_columns(self) -> dict[str, list[int]]:
        """Columns (of group 0) to drop, by layer."""
        found = self.links.idle_columns(self.layers)
        return {self.layers[i].name: columns[0].nonzero().flatten().tolist() for i, columns in found.items()}


CHAIN = conv("a", "x", 4, 3) + simple("Pooling", "p", "a", more="pooling_param { pool: MAX kernel_size: 2 stride: 2 }") + \
    simple("ReLU", "r", "p", tops=("p",)) + conv("b", "p", 5, 2) + inner("f", "b")


@pytest.mark.parametrize("as_reference", [False, True])
def test_chain(as_reference: bool) -> None:
    net = Traced(CHAIN, as_reference)
    assert net.idle_rows() == net.idle_columns() == {}
    net.prune_channels("b", 2)
    assert net.idle_rows() == {"a": [2]}
    net.by_name["b"].masks.columns[0, 0] = True  # one of the four columns of channel 0
    assert net.idle_rows() == {"a": [2]}
    net.prune_rows("a", 2)
    assert net.idle_rows() == {}
    assert net.idle_columns() == {}  # channel 2 of b is pruned already
    net.prune_rows("a", 3)
    assert net.idle_columns() == {"b": [8, 9, 10, 11, 12, 13, 14, 15]}


def test_convolution_to_inner_product() -> None:
    """A channel is as many columns as the bottom has pixels; the reference leaves this pair alone."""
    net, reference = Traced(CHAIN), Traced(CHAIN, as_reference=True)
    for traced in (net, reference):
        traced.by_name["f"].masks.columns[0, 3] = True
        traced.by_name["f"].masks.columns[0, 1] = True
    assert net.by_name["f"].layout.columns == 5
    assert net.idle_rows() == {"b": [1, 3]}
    assert reference.idle_rows() == {}


def test_flattened_pixels() -> None:
    net = Traced(conv("a", "x", 4, 5) + simple("Flatten", "flat", "a") + inner("f", "flat", 3) + inner("g", "f"))
    assert net.by_name["f"].layout.columns == 16
    net.by_name["f"].masks.columns[0, 8:11] = True
    assert net.idle_rows() == {}
    net.by_name["f"].masks.columns[0, 11] = True
    assert net.idle_rows() == {"a": [2]}
    net.prune_rows("a", 0)
    assert net.idle_columns()["f"][:4] == [0, 1, 2, 3]
    net.prune_channels("g", 1)
    assert net.idle_rows() == {"a": [2], "f": [1]}


RESIDUAL = conv("stem", "x", 4) + conv("left", "stem", 4) + conv("right", "stem", 4) + \
    simple("BatchNorm", "bn", "right") + simple("Scale", "scale", "bn", more="scale_param { bias_term: true }") + \
    simple("Eltwise", "sum", "left", "scale") + simple("ReLU", "relu", "sum", tops=("sum",)) + \
    conv("next", "sum", 4) + simple("Eltwise", "sum2", "sum", "next") + conv("last", "sum2", 2)


def test_summands_go_together() -> None:
    """A channel of a sum is there until everyone who reads it, also further along the shortcut, has let go of it."""
    net = Traced(RESIDUAL)
    net.prune_channels("next", 1)
    assert net.idle_rows() == {}  # `last` reads the channel too, through the second sum
    net.prune_channels("last", 1)
    assert net.idle_rows() == {"left": [1], "right": [1], "next": [1]}
    net.prune_channels("left", 0)
    assert "stem" not in net.idle_rows()  # `right` still reads it
    net.prune_channels("right", 0)
    assert net.idle_rows()["stem"] == [0]


def test_a_sum_is_there_while_one_summand_is() -> None:
    net = Traced(RESIDUAL)
    for name in ("left", "right"):
        net.prune_rows(name, 3)
    assert net.idle_columns() == {}
    net.prune_rows("next", 3)
    assert net.idle_columns() == {"next": [3], "last": [3]}


def test_the_reference_goes_by_order() -> None:
    """It takes `left` for the source of `right`."""
    net = Traced(RESIDUAL, as_reference=True)
    net.prune_channels("right", 0)
    assert net.idle_rows() == {"left": [0]}


def test_concat_and_slice() -> None:
    text = conv("a", "x", 3) + conv("b", "x", 2) + simple("Concat", "both", "a", "b") + conv("c", "both", 2) + \
        simple("Slice", "parts", "both2", tops=("one", "two"), more="slice_param { slice_point: 1 }") + \
        conv("d", "one", 2) + conv("e", "two", 2)
    text = text.replace('layer { name: "parts"', simple("ReLU", "both2", "both") + 'layer { name: "parts"')
    net = Traced(text)
    net.prune_channels("c", 0, 4)
    assert net.idle_rows() == {}
    net.prune_channels("d", 0)
    assert net.idle_rows() == {"a": [0]}
    net.prune_channels("e", 3)
    assert net.idle_rows() == {"a": [0], "b": [1]}
    net.prune_rows("b", 0)
    assert net.idle_columns() == {"c": [3], "e": [2]}


def test_groups() -> None:
    """Each group of a convolution reads its own channels."""
    net = Traced(conv("a", "x", 4) + conv("b", "a", 4, 1, "group: 2") + conv("c", "b", 2))
    net.by_name["b"].masks.columns[1, 0] = True
    assert net.idle_rows() == {"a": [2]}
    net.prune_rows("a", 1)
    assert net.links.idle_columns(net.layers)[1].tolist() == [[False, True], [False, False]]
    reference = Traced(conv("a", "x", 4) + conv("b", "a", 4, 1, "group: 2") + conv("c", "b", 2), as_reference=True)
    reference.prune_channels("b", 1)
    assert reference.idle_rows() == {"a": [1, 3]}


@pytest.mark.parametrize("reader", [
    simple("Softmax", "s", "a"), simple("ArgMax", "s", "a"), simple("Reduction", "s", "a"), "",
    simple("MVN", "s", "a", more="mvn_param { across_channels: true }"),
    simple("Deconvolution", "s", "a", more="convolution_param { num_output: 2 kernel_size: 2 }"),
])
def test_what_others_read_stays(reader: str) -> None:
    """Also what is an output of the net."""
    net = Traced(conv("a", "x", 4) + conv("b", "a", 2) + (reader or simple("ReLU", "out", "a")))
    net.prune_channels("b", 0, 1)
    assert net.idle_rows() == {}


def test_what_others_write_stays() -> None:
    other = simple("Deconvolution", "d", "x", more="convolution_param { num_output: 3 kernel_size: 1 }")
    net = Traced(conv("a", "x", 3) + other + simple("Eltwise", "sum", "a", "d") + conv("b", "sum", 2))
    net.prune_rows("a", 0)
    assert net.idle_columns() == {}
    net.prune_channels("b", 1)
    assert net.idle_rows() == {"a": [1]}  # nobody reads the sum's channel 1


def test_what_is_silenced_is_not_read() -> None:
    net = Traced(conv("a", "x", 4) + conv("b", "a", 2) +
                 'layer { name: "silent" type: "Silence" bottom: "b" }\n' + conv("c", "a", 2))
    assert net.idle_rows() == {"b": [0, 1]}


def test_layers_of_two_minds_stay_out() -> None:
    """Scale with two bottoms multiplies blobs whose axes may mean different things."""
    scale = simple("Scale", "s", "a", "b", more="scale_param { axis: 0 }")
    net = Traced(conv("a", "x", 4) + conv("b", "x", 4) + scale + conv("c", "s", 2))
    net.prune_channels("c", 0)
    assert net.idle_rows() == {}


@pytest.mark.parametrize(("name", "stay"), [("resnet50", {"fc1000"}), ("googlenet", {"loss3/classifier"}),
                                            ("squeezenet_v1.1", {"conv10"})])
def test_published_nets_are_traced(name: str, stay: set[str]) -> None:
    """Residual and branching nets: all that is read is written by a layer that can be pruned, but for the image; when
    nothing is read any more, all rows can go, but for the classes'."""
    net = Net(PROTOTXT / name / "deploy.prototxt", "TEST")
    layers = [layer_state(layer.name, layer.blobs[0].shape, i) for i, layer in enumerate(
        layer for layer in net.layers if layer.type in ("Convolution", "InnerProduct"))]
    links = coupling.from_net(net, layers, torch.device("cpu"))
    written = set(torch.cat([channels.flatten() for channels in links.writes]).tolist())
    for layer, channels in zip(layers, links.reads):
        assert (set(channels.flatten().tolist()) <= written) is (layer is not layers[0]), layer.name
    for layer in layers:
        layer.masks.add_columns(torch.ones_like(layer.masks.columns))
    idle = links.idle_rows(layers)
    assert {layer.name for layer in layers if layer.index not in idle} == stay
    assert all(rows.all() for rows in idle.values())


def test_depthwise() -> None:
    """A group without rows reads nothing, one without columns writes nothing."""
    net = Traced(conv("a", "x", 3) + conv("d", "a", 3, 3, "group: 3") + conv("b", "d", 2))
    net.prune_channels("b", 1)
    assert net.idle_rows() == {"d": [1]}
    net.prune_rows("d", 1)
    assert net.links.idle_columns(net.layers)[1].all(1).tolist() == [False, True, False]
    net.by_name["d"].masks.columns[1] = True
    assert net.idle_rows() == {"a": [1]}
    other = Traced(conv("a", "x", 3) + conv("d", "a", 3, 3, "group: 3") + conv("b", "d", 2))
    other.prune_rows("a", 2)
    other.by_name["d"].masks.columns[2] = True
    assert other.idle_rows() == {"d": [2]}


def test_shared_weights() -> None:
    """A row of a shared weight is one in each layer that has it: it goes when none of their readers reads it."""
    shared = 'param {{ name: "w" }} convolution_param {{ num_output: 3 kernel_size: 1 bias_term: {} }}'
    text = (conv("i", "x", 3) + simple("Convolution", "a", "i", more=shared.format("true"))
            + simple("Convolution", "b", "i", more=shared.format("false")) + conv("c", "a", 2) + conv("d", "b", 2))
    net = Net(proto.parse_text(INPUT + text, "NetParameter"), "TRAIN")
    names = ["i", "a", "c", "d"]
    layers = [layer_state(name, net.params[name][0].shape, k) for k, name in enumerate(names)]
    layers[1].weight, layers[1].shared = net.params["a"][0], True
    links = coupling.from_net(net, layers, torch.device("cpu"))
    layers[2].masks.columns[0, 1] = True
    assert links.idle_rows(layers) == {}
    layers[3].masks.columns[0, 1] = True
    assert {index: rows.tolist() for index, rows in links.idle_rows(layers).items()} == {1: [False, True, False]}


def test_slices_of_other_axes() -> None:
    """Each part has all channels."""
    parts = simple("Slice", "s", "a", tops=("u", "v"), more="slice_param { axis: 2 slice_point: 2 }")
    net = Traced(conv("a", "x", 4) + parts + conv("b", "u", 2) + conv("c", "v", 2))
    net.prune_channels("b", 1)
    assert net.idle_rows() == {}
    net.prune_channels("c", 1)
    assert net.idle_rows() == {"a": [1]}


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who writes, who reads, what goes along, and what stays whatever happens."""
    (tmp_path / "net.prototxt").write_text(INPUT + RESIDUAL)
    assert main(["coupling", str(tmp_path / "net.prototxt")]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:-1] == [
        "channels written by read by with stays for", "3 - stem - in (Input)", "4 stem left right - -",
        "4 left right next next last bn scale -", "2 last - - output last"]


def test_groups_of_published_nets() -> None:
    """The rows of a stage of ResNet-50 that are added up; LRN counts only where it must be exact."""
    net = Net(PROTOTXT / "resnet50" / "deploy.prototxt", "TEST")
    together = [len(group.writers) for group in groups(net) if len(group.writers) > 1]
    assert together == [4, 5, 7, 4]
    net = Net(PROTOTXT / "caffenet" / "deploy.prototxt", "TEST")
    for exact in (False, True):
        fixed = {group.writers: group.fixed for group in groups(net, exact=exact)}
        assert fixed["conv1",] == (("norm1 (LRN)",) if exact else ())
