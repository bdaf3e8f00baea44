"""Whether two models compute the same: Caffe nets, torch exports, ONNX files and recordings, blob by blob.

>>> from caffe_compat.check import compare
>>> report = compare("deploy.prototxt:weights.caffemodel", "exported.onnx")
>>> report.equal, report.first
>>> print(report)

A model is anything that `RUNNERS` knows to run, or a `Runner` (which `Net` and torch modules are made into):

    net.prototxt:weights.caffemodel   a Caffe net; .caffemodel.h5 and recordings (.npz) hold weights too
    solver.prototxt                   a Caffe solver, to be compared with the recording of one
    folder, or folder/model.py        what `convert --to torch` wrote: code, which is run only if `allow_code` says so
    model.onnx                        an ONNX file, run by onnxruntime
    recorded.npz                      a recording (docs/recordings.md), made by `record` with real Caffe, say
"""

from .compare import compare
from .report import Difference, Report
from .runner import RUNNERS, Options, Runner

__all__ = ["RUNNERS", "Difference", "Options", "Report", "Runner", "compare"]
