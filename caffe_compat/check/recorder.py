#!/usr/bin/env python
"""Records what your own Caffe makes of a model, in a file that `caffe-compat check` compares other models with.

It runs under Python 2.7 and 3 and needs your pycaffe and numpy, nothing else:

    python THIS_FILE [--caffe CAFFE_ROOT/python] [--gpu 0] [--output FILE.npz]

A net's inputs are random numbers, or the arrays of --input FILE.npz (or .npy). Afterwards: caffe-compat check FILE.npz
"""

from __future__ import print_function

import argparse
import json
import os
import re
import sys
import tempfile

import numpy as np

SETTINGS = json.loads('{}')  # what to record: filled in by `caffe-compat record`


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caffe", help="the folder that holds the Python package caffe, if Python does not find it")
    parser.add_argument("--gpu", type=int, help="the number of the GPU to run on (default: the CPU)")
    parser.add_argument("--output", default=SETTINGS["output"], help="the file to write (default %(default)s)")
    parser.add_argument("--model", default=SETTINGS["model"], help="the prototxt (default %(default)s)")
    parser.add_argument("--weights", default=SETTINGS["weights"], help="the caffemodel (default %(default)s)")
    parser.add_argument("--input", default=SETTINGS["input"], help="an .npz, or .npy, with the inputs (default: random)")
    args = parser.parse_args()
    if args.caffe:
        sys.path.insert(0, args.caffe)
    os.environ.setdefault("GLOG_minloglevel", "2")
    import caffe

    if args.gpu is None:
        caffe.set_mode_cpu()
    else:
        caffe.set_device(args.gpu)
        caffe.set_mode_gpu()
    about = {"format": "caffe-recording", "version": 1, "kind": SETTINGS["kind"], "phase": SETTINGS["phase"],
             "model": os.path.basename(args.model), "weights": os.path.basename(args.weights or ""),
             "caffe": str(getattr(caffe, "__version__", "")), "gpu": args.gpu is not None, "notes": []}
    if SETTINGS["kind"] == "solver":
        record_solver(caffe, args, about)
    else:
        record_net(caffe, args, about)
    for note in about["notes"]:
        print("note: " + note)
    print("Wrote " + args.output)


# -- a net ------------------------------------------------------------------------------------------------------------


def record_net(caffe, args, about):
    about["prototxt"] = read(args.model)
    about["force_backward"] = SETTINGS["gradients"] and not SETTINGS["has_loss"]
    text = about["prototxt"]
    if about["force_backward"] and not re.search(r"^\s*force_backward", text, re.M):
        text = "force_backward: true\n" + text
    net = make_net(caffe, text, args.weights)
    arrays = {}
    fill_inputs(net, args.input, arrays)
    for name, blobs in net.params.items():
        for j, blob in enumerate(blobs):
            arrays["param/%s/%d" % (name, j)] = blob.data.copy()
    forward(net, arrays, about)
    save(args.output, about, arrays)  # a backward pass that some layer does not have ends the process
    if SETTINGS["gradients"]:
        backward(net, arrays, about)
        save(args.output, about, arrays)


def make_net(caffe, text, weights):
    phase = caffe.TRAIN if SETTINGS["phase"] == "TRAIN" else caffe.TEST
    handle, path = tempfile.mkstemp(suffix=".prototxt")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
        return caffe.Net(str(path), str(weights), phase) if weights else caffe.Net(str(path), phase)
    finally:
        os.remove(path)


def fill_inputs(net, path, arrays):
    given = None
    if path:
        given = np.load(path)
        given = {net.inputs[0]: given} if isinstance(given, np.ndarray) else dict(given.items())
    random = np.random.RandomState(SETTINGS["seed"])
    for name in net.inputs:
        blob = net.blobs[name]
        values = random.standard_normal(blob.data.shape) if given is None else given[name]
        if blob.data.shape != values.shape:
            blob.reshape(*values.shape)
        arrays["input/" + name] = np.array(values, np.float32)
    net.reshape()
    for name in net.inputs:
        net.blobs[name].data[...] = arrays["input/" + name]


def forward(net, arrays, about):
    """Layer by layer, so that what is overwritten in place is recorded too: as conv1.v0, conv1.v1, ..."""
    layers, blobs = list(net._layer_names), list(net.blobs)
    made = []
    if hasattr(net, "_top_ids"):
        for i in range(len(layers)):
            net._forward(i, i)
            sources = len(net._bottom_ids(i)) == 0
            for k in net._top_ids(i):
                if blobs[k] in net.inputs:
                    continue
                made.append((blobs[k], net.blobs[blobs[k]].data.copy()))
                if sources:
                    arrays["input/" + blobs[k]] = made[-1][1]
    else:
        about["notes"].append("this pycaffe does not tell the tops of a layer: blobs are as they are after the pass")
        net.forward()
        made = [(name, net.blobs[name].data.copy()) for name in blobs if name not in net.inputs]
    about["layers"], about["blobs"] = layers, []
    names = [name for name, _ in made]
    for i, (name, values) in enumerate(made):
        if re.search(r"._split_\d+$", name):
            continue  # copies, made by Caffe's own Split layers
        key = name if name not in names[i + 1:] else "%s.v%d" % (name, names[:i].count(name))
        about["blobs"].append(key)
        arrays["blob/" + key] = values


def backward(net, arrays, about):
    if not SETTINGS["has_loss"]:
        random = np.random.RandomState(SETTINGS["seed"] + 1)
        for name in net.outputs:
            diff = net.blobs[name].diff
            diff[...] = random.standard_normal(diff.shape)
            arrays["output_diff/" + name] = diff.copy()
    for blobs in net.params.values():
        for blob in blobs:
            blob.diff[...] = 0
    net._backward(len(about["layers"]) - 1, 0)
    for name, blob in net.blobs.items():
        if not re.search(r"._split_\d+$", name) and "output_diff/" + name not in arrays:
            arrays["blob_diff/" + name] = blob.diff.copy()
    for name, blobs in net.params.items():
        for j, blob in enumerate(blobs):
            arrays["param_diff/%s/%d" % (name, j)] = blob.diff.copy()


# -- a solver ---------------------------------------------------------------------------------------------------------


def record_solver(caffe, args, about):
    about["solver"] = read(args.model)
    found = re.search(r"^\s*(?:train_)?net\s*:\s*[\"'](.+?)[\"']", about["solver"], re.M)
    about["prototxt"] = read(found.group(1)) if found else ""
    make = getattr(caffe, "get_solver", caffe.SGDSolver)
    solver = make(str(args.model))
    net = solver.net
    if args.weights:
        net.copy_from(str(args.weights))
    arrays = {}
    keep_data = SETTINGS["data"] and hasattr(net, "_top_ids")
    passes = re.search(r"^\s*iter_size\s*:\s*(\d+)", about["solver"], re.M)
    if passes and int(passes.group(1)) > 1:
        keep_data = False
        about["notes"].append("iter_size is %s: the data are not recorded, so check has to read them itself"
                              % passes.group(1))
    sources = []
    if hasattr(net, "_top_ids"):
        blobs = list(net.blobs)
        sources = [blobs[k] for i in range(len(net._layer_names)) if len(net._bottom_ids(i)) == 0
                   for k in net._top_ids(i)]
    about["layers"], about["blobs"] = list(net._layer_names), list(net.outputs)
    about["iterations"] = [k for k in SETTINGS["recorded"]]
    keep(net, arrays, 0, [])
    for k in range(1, max(about["iterations"]) + 1):
        solver.step(1)
        if keep_data:
            for name in sources:
                arrays["iter/%d/input/%s" % (k, name)] = net.blobs[name].data.copy()
        if k in about["iterations"]:
            keep(net, arrays, k, net.outputs)
    save(args.output, about, arrays)


def keep(net, arrays, k, outputs):
    for name, blobs in net.params.items():
        for j, blob in enumerate(blobs):
            arrays["iter/%d/param/%s/%d" % (k, name, j)] = blob.data.copy()
    for name in outputs:
        arrays["iter/%d/blob/%s" % (k, name)] = net.blobs[name].data.copy()


# -- files ------------------------------------------------------------------------------------------------------------


def read(path):
    with open(path, "rb") as file:
        return file.read().decode("utf-8", "replace")


def save(path, about, arrays):
    """Writes the file whole or not at all."""
    temporary = path + ".tmp.npz"
    arrays = dict((str(key), np.asarray(values)) for key, values in arrays.items())
    np.savez_compressed(temporary, recording=np.array(json.dumps(about, sort_keys=True)), **arrays)
    if os.path.exists(path):
        os.remove(path)
    os.rename(temporary, path)


if __name__ == "__main__":
    main()
