"""caffe.draw: what stands in the graph; Graphviz paints it where it is installed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import caffe_compat as caffe
from caffe_compat import draw, proto
from caffe_compat.errors import CaffeError

NET = """
name: "a \\"quoted\\" net"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } data_param { batch_size: 64 } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST } data_param { batch_size: 100 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 20 kernel_size: 5 pad: 2 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" exclude { phase: TEST } }
"""
MESSAGE = proto.parse_text(NET, "NetParameter").message


def labels(text: str) -> dict[str, str]:
    return dict(re.findall(r'^("[^"]*") \[label="([^"]*)"', text, re.MULTILINE))


def test_boxes_and_arrows() -> None:
    text = draw.draw_net(MESSAGE, "TB", "dot").decode()
    assert text.startswith('digraph "a \\"quoted\\" net" {\nrankdir=TB;\n') and text.endswith("}\n")
    boxes = labels(text)
    assert boxes['"conv_Convolution"'] == "conv (Convolution) kernel size: 5 stride: 1 pad: 2"
    assert boxes['"pool_Pooling"'] == "pool (Pooling AVE) kernel size: 3 stride: 2 pad: 0"
    assert boxes['"fc_blob"'] == "fc"
    assert '"data_blob" -> "conv_Convolution" [label=""]' in text
    assert '"conv_Convolution" -> "conv_blob" [label="20"]' in text
    assert '"data_Data" -> "label_blob" [label="Batch 64"]' in text and "Batch 100" in text
    assert re.search(r'"relu_ReLU" .*fillcolor="#90EE90"', text) and re.search(r'"fc_InnerProduct" .*"#CC33FF"', text)


def test_options() -> None:
    text = draw.dot_text(MESSAGE, "LR", display_lrm=True)
    assert labels(text)['"conv_Convolution"'] == (
        r"conv\n(Convolution)\nkernel size: 5\nstride: 1\npad: 2\nlr mult: 1.0, 2.0")
    assert labels(text)['"fc_InnerProduct"'] == r"fc\n(InnerProduct)\nlr mult: 1.0, 1.0"
    test = draw.dot_text(MESSAGE, "LR", phase=caffe.TEST)
    assert "Batch 100" in test and "Batch 64" not in test and "loss" not in test
    train = draw.dot_text(MESSAGE, "LR", phase=caffe.TRAIN)
    assert "Batch 64" in train and "Batch 100" not in train and "loss_SoftmaxWithLoss" in train
    assert "Batch" not in draw.dot_text(MESSAGE, "LR", label_edges=False)


def test_files(tmp_path: Path) -> None:
    draw.draw_net_to_file(MESSAGE, tmp_path / "net.gv", "BT")
    assert (tmp_path / "net.gv").read_text() == draw.dot_text(MESSAGE, "BT")
    with pytest.raises(CaffeError, match="cannot be written"):
        draw.draw_net_to_file(MESSAGE, tmp_path / "gone" / "net.dot")


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaffeError, match='rankdir is "XY"'):
        draw.draw_net(MESSAGE, "XY")
    both = proto.parse_text('layer { name: "a" type: "ReLU" include {} exclude {} }', "NetParameter").message
    with pytest.raises(CaffeError, match="both include and exclude"):
        draw.draw_net(both, "LR", "dot", phase=caffe.TEST)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(CaffeError, match="install Graphviz"):
        draw.draw_net(MESSAGE, "LR")


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz")
def test_pictures(tmp_path: Path) -> None:
    assert draw.draw_net(MESSAGE, "LR").startswith(b"\x89PNG")
    draw.draw_net_to_file(MESSAGE, tmp_path / "net.svg")
    assert "Convolution" in (tmp_path / "net.svg").read_text()
    with pytest.raises(CaffeError, match='dot cannot paint the format "nonsense"'):
        draw.draw_net(MESSAGE, "LR", "nonsense")


def test_pydot() -> None:
    try:
        import pydot
    except ImportError:
        with pytest.raises(CaffeError, match="needs the package pydot"):
            draw.get_pydot_graph(MESSAGE, "LR")
    else:
        assert isinstance(draw.get_pydot_graph(MESSAGE, "LR"), pydot.Dot)
