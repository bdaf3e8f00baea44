"""The recorded layer cases and nets, which other folders' tests read too; and a layer type from elsewhere."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from caffe_compat.convert import TORCH
from caffe_compat.convert.onnx_writer import ONNX
from caffe_compat.layers import LAYERS, Layer, layer

for folder in ("layers", "."):
    sys.path.insert(0, str((Path(__file__).parents[1] / folder).resolve()))


@pytest.fixture
def hard_swish() -> Iterator[str]:
    """A layer of the type that docs/convert-types.md has as its example, in registries for one test: from x to y."""

    @layer("HardSwish", param="clip_param")  # any message with a number
    class HardSwish(Layer):
        """x clip(x + offset, 0, 6) / 6."""

        def setup(self, shapes):
            self.param = SimpleNamespace(offset=self.param.max)

        def forward(self, x):
            return x * (x + self.param.offset).clamp(0, 6) / 6

    try:
        yield 'layer { name: "act" type: "HardSwish" bottom: "x" top: "y" clip_param { min: 0 max: 2.5 } }'
    finally:
        for registry in (LAYERS, TORCH, ONNX):
            registry._entries.pop("HardSwish", None)
