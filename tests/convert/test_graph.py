"""The graph that exporters see: versions, splits, sharing, inputs; and the passes that leave things out."""

from __future__ import annotations

import golden
import numpy as np
import pytest
import test_nets

from caffe_compat import proto
from caffe_compat.convert import Graph, open_net
from caffe_compat.convert.passes import drop_identities, drop_losses, drop_silent
from caffe_compat.errors import NetError, WeightError
from caffe_compat.net import Net
from caffe_compat.proto import Document
from caffe_compat.weights import LoadOptions

DATA = """layer { name: "in" type: "Input" top: "x" top: "label"
                  input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } shape { dim: 2 } } }"""
IP = 'inner_product_param { num_output: 3 weight_filler { type: "xavier" } }'


def graph_of(text: str, phase: str = "TEST") -> Graph:
    return Graph.of(Net(proto.parse_text(text, "NetParameter"), phase, seed=1))


def test_versions() -> None:
    """The last version of a blob has its name, earlier ones another that no blob has."""
    graph = graph_of(DATA + """
        layer { name: "a" type: "ReLU" bottom: "x" top: "y" }
        layer { name: "b" type: "ReLU" bottom: "y" top: "y" }
        layer { name: "c" type: "Sigmoid" bottom: "label" top: "y.v0" }
        layer { name: "d" type: "TanH" bottom: "y" top: "y" }""")
    a, b, c, d = graph.nodes
    assert a.outputs == b.inputs == ["y.v0_"] and b.outputs == d.inputs == ["y.v1"] and d.outputs == ["y"]
    assert c.outputs == ["y.v0"] and graph.blob("y.v0") == "y.v0" and graph.blob("y.v0_") == graph.blob("y.v1") == "y"
    assert graph.outputs == ["y", "y.v0"] and graph.inputs == {"x": (2, 3, 4, 4), "label": (2,)}
    assert [list(spec.top) for spec in graph.to_document().message.layer[2:]] == [["y"], ["y"], ["y.v0"], ["y"]]


def test_splits() -> None:
    """Caffe's own vanish, one in the file stays, and a loss weight that moved to a split does not make an output of it."""
    graph = graph_of(DATA + """
        layer { name: "a" type: "ReLU" bottom: "x" top: "y" loss_weight: 0.5 }
        layer { name: "b" type: "TanH" bottom: "y" top: "z" }
        layer { name: "c" type: "Split" bottom: "z" top: "z1" top: "z2" }
        layer { name: "quiet" type: "Silence" bottom: "label" }""")
    assert [(node.name, node.inputs, node.outputs) for node in graph.nodes] == [
        ("a", ["x"], ["y"]), ("b", ["y"], ["z"]), ("c", ["z"], ["z1", "z2"]), ("quiet", ["label"], [])]
    assert graph.outputs == ["y", "z1", "z2"]
    assert graph.to_document().message.layer[2].loss_weight == [0.5]
    graph.run([drop_silent])
    assert len(graph.nodes) == 3 and list(graph.inputs) == ["x"]


def test_shared_parameters() -> None:
    """One owner, one memory."""
    shared = f'param {{ name: "w" }} param {{ name: "b" }} {IP}'
    graph = graph_of(DATA + f"""
        layer {{ name: "a" type: "InnerProduct" bottom: "x" top: "a" {shared} }}
        layer {{ name: "b" type: "InnerProduct" bottom: "x" top: "b" {shared} }}
        layer {{ name: "c" type: "InnerProduct" bottom: "x" top: "c" {IP} }}""")
    a, b, c = graph.nodes
    assert a.owners == b.owners == [("a", 0), ("a", 1)] and c.owners == [("c", 0), ("c", 1)]
    assert np.shares_memory(a.params[0], b.params[0]) and graph.is_shared(a) and not graph.is_shared(c)


@pytest.mark.parametrize("name", ["HDF5Data_one_batch", "MemoryData_one_batch", "DummyData_constant"])
def test_data_become_inputs(name: str) -> None:
    """What layers read is given to the graph; a constant is not."""
    if name not in {case["name"] for case in golden.all_cases()}:
        name = next(case["name"] for case in golden.cases("DummyData"))
    case = golden.case_named(name)
    with golden.folder_of(case):
        graph = Graph.of(golden.build(case))
    constant = case["type"] == "DummyData"
    assert [node.type for node in graph.nodes] == ["DummyData"] * constant
    assert set(case["tops"]) == (set(graph.outputs) if constant else set(graph.inputs))


TRAIN_VAL = DATA + f"""
    layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "ip" {IP} }}
    layer {{ name: "drop" type: "Dropout" bottom: "ip" top: "ip" }}
    layer {{ name: "drop2" type: "Dropout" bottom: "ip" top: "apart" }}
    layer {{ name: "ip2" type: "InnerProduct" bottom: "apart" top: "ip2" {IP} }}
    layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" }}
    layer {{ name: "aux" type: "EuclideanLoss" bottom: "ip" bottom: "ip2" top: "aux" }}
    layer {{ name: "right" type: "Accuracy" bottom: "ip2" bottom: "label" top: "right" }}"""


def test_losses_and_dropout_go() -> None:
    """With the labels; what the losses judge is the output, and values keep the names of their blobs."""
    graph = graph_of(TRAIN_VAL, "TRAIN").run([drop_losses, drop_identities])
    assert [node.name for node in graph.nodes] == ["ip", "ip2"] and list(graph.inputs) == ["x"]
    assert graph.outputs == ["ip2"] and graph.nodes[0].outputs == ["ip"] == graph.nodes[1].inputs


def test_a_dropout_that_makes_an_output_stays() -> None:
    """Or the output would lose its name."""
    text = DATA + 'layer { name: "drop" type: "Dropout" bottom: "x" top: "y" }'
    assert [node.name for node in graph_of(text).run([drop_identities]).nodes] == ["drop"]


@pytest.mark.parametrize("name", ["googlenet", "resnet50", "mobilenet_v1", "lenet"])
def test_document_is_the_net_again(name: str) -> None:
    """Blobs, shapes and parameters of the published nets, through the graph and back."""
    net = test_nets.build(name)
    graph = Graph.of(net)
    document = graph.to_document(weights=False)
    again = Net(Document(document.message, document.dialect), "TEST")
    assert test_nets.layers_of(again)[1:] == test_nets.layers_of(net)[1:]
    assert test_nets.blobs_of(again) == test_nets.blobs_of(net)
    assert test_nets.params_of(again) == test_nets.params_of(net)
    assert str(graph).count("\n") == len(graph.nodes) + len(graph.inputs)


# -- opening what is to be converted ------------------------------------------------------------------------------------

READS = """
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "nowhere" batch_size: 2 backend: LMDB } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def test_data_need_not_be_there() -> None:
    """Given a shape, a layer that reads a database is an input; labels follow its batch."""
    net, report = open_net(proto.parse_text(READS, "NetParameter"), inputs={"data": (4, 3, 8, 8)})
    assert report is None and net.blobs["label"].shape == (4,) and net.blobs["ip"].shape == (4, 3)
    with pytest.raises(NetError, match='has no blob "dta".*did you mean "data"'):
        open_net(proto.parse_text(READS, "NetParameter"), inputs={"data": (4, 3, 8, 8), "dta": (1,)})


def test_missing_weights_are_an_error() -> None:
    """Unless they are not to be; a map says what a layer is called in the file."""
    small = DATA + f'layer {{ name: "old" type: "InnerProduct" bottom: "x" top: "a" {IP} }}'
    large = DATA + f"""layer {{ name: "new" type: "InnerProduct" bottom: "x" top: "a" {IP} }}
                       layer {{ name: "more" type: "InnerProduct" bottom: "x" top: "b" {IP} }}"""
    weights = Graph.of(Net(proto.parse_text(small, "NetParameter"), seed=1))
    weights.nodes[0].params[0][...] = 7

    def opened(**how: object) -> Net:
        return open_net(proto.parse_text(large, "NetParameter"), weights.to_document(), **how)[0]  # type: ignore[arg-type]

    with pytest.raises(WeightError, match="no layer of the file is in the net"):
        opened()
    with pytest.raises(WeightError, match="more: the file has no weights for this"):
        opened(loading=LoadOptions(strict=True, rename={"old": "new"}))
    loading = LoadOptions(strict=True, rename={"old": "new"}, skip=("mo*",))
    assert (opened(loading=loading).params["new"][0].data == 7).all()


def test_a_net_of_losses_alone_is_refused() -> None:
    """Nothing would be left."""
    graph = graph_of(DATA + 'layer { name: "loss" type: "EuclideanLoss" bottom: "label" bottom: "x" top: "loss" }'
                     .replace('"x"', '"label"'))
    graph.outputs.remove("x")
    with pytest.raises(NetError, match="nothing is left"):
        graph.run([drop_losses])
