"""Published networks side by side with the same networks written by hand in PyTorch, and the overhead of a layer.

    python benchmarks/nets.py [lenet cifar10_full alexnet googlenet vgg16 resnet50] [--threads 2] [--seconds 2]

Each network runs forward in the TEST phase (`net.forward()`) and forward and backward in the TRAIN phase, from the same
weights; that both give the same scores is checked first. PyTorch runs in both memory formats, and the faster one is the
measure. All take turns, and each one's fastest pass counts. On a busy machine use `--threads 1`: then processor time is
counted instead of time on the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_nets import TORCH_NETS

from caffe_compat import Net, proto
from caffe_compat.memory import keep_freed_memory
from caffe_compat.pycaffe.net_spec import NetSpec, layers, params

PROTOTXT = Path(__file__).parents[1] / "prototxt"
#: Images in a batch.
BATCHES = {"lenet": 64, "cifar10_full": 100, "alexnet": 10, "googlenet": 10, "vgg16": 2, "resnet50": 2}
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", metavar="NET", help="the networks to run (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default 2)")
    parser.add_argument("--seconds", type=float, default=2, help="time for each contender and measurement (default 2)")
    args = parser.parse_args()
    keep_freed_memory()  # as the commands do
    for name in args.nets:
        if name not in TORCH_NETS:
            parser.error(f"no network {name}; there are {', '.join(TORCH_NETS)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    print(f"{args.threads} threads; milliseconds a pass; ratio: ours to PyTorch's better format")
    print(f"{'':14}batch  pass              NCHW     NHWC     ours  ratio")
    for name in args.nets or TORCH_NETS:
        measure_net(name, args.seconds)
    measure_overhead(args.seconds)


def measure_net(name: str, seconds: float) -> None:
    """Prints a line for the forward pass and one for forward and backward."""
    batch = BATCHES[name]
    for phase, label in (("TEST", "forward"), ("TRAIN", "forward+backward")):
        net = caffe_net(name, batch, phase)
        contenders: dict[str, Callable[[], object]] = {}
        for form, memory_format in FORMATS.items():
            model = torch_net(name, net).to(memory_format=memory_format)
            images = net.blobs["data"].tensor.clone(memory_format=memory_format)
            check_same(name, net, model, images)
            contenders[form] = forward(model, images) if phase == "TEST" else training(model, images)
        contenders["ours"] = net.forward if phase == "TEST" else training_ours(net)
        times = fastest(contenders, seconds)
        ratio = times["ours"] / min(times[form] for form in FORMATS)
        columns = "".join(f"{1e3 * value:9.2f}" for value in times.values())
        print(f"{name:14}{batch:5}  {label:16}{columns} {ratio:6.3f}", flush=True)


def caffe_net(name: str, batch: int, phase: str) -> Net:
    """The deploy net with random weights and images; in the TRAIN phase with a loss in place of the probabilities."""
    message = proto.read_text(PROTOTXT / name / "deploy.prototxt", "NetParameter").message
    message.layer[0].input_param.shape[0].dim[0] = batch
    for layer in message.layer:
        layer.batch_norm_param.ClearField("use_global_stats")  # by the batch in TRAIN
        for settings in ("convolution_param", "inner_product_param"):
            if layer.HasField(settings):
                getattr(layer, settings).weight_filler.type = "msra"
    if phase == "TRAIN":
        if message.layer[-1].type == "Softmax":
            del message.layer[-1]
        message.layer[0].top.append("label")
        message.layer[0].input_param.shape.add(dim=[batch])
        message.layer.add(name="loss", type="SoftmaxWithLoss", bottom=[message.layer[-1].top[0], "label"], top=["loss"])
    net = Net(proto.Document(message, proto.BVLC), phase, seed=1, keep_blobs=[_scores(message)])
    for layer in net.layers:
        if layer.type == "BatchNorm":
            layer.blobs[1].data[...] = layer.blobs[2].data[...] = 1
    net.blobs["data"].data[...] = torch.randn(net.blobs["data"].shape)
    return net


def _scores(message: Any) -> str:
    """The blob with the scores, before the probabilities or the loss."""
    last = message.layer[-1]
    return last.bottom[0] if "Softmax" in last.type else last.top[0]


def torch_net(name: str, net: Net) -> nn.Module:
    """The hand-written network with the weights of `net`, in the mode of its phase."""
    model = TORCH_NETS[name]()
    modules = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    sources = [layer for layer in net.layers if layer.type in ("Convolution", "InnerProduct")]
    with torch.no_grad():
        for module, layer in zip(modules, sources, strict=True):
            for parameter, blob in zip(module.parameters(), layer.blobs, strict=True):
                parameter.copy_(blob.tensor)
    return model.train(net.phase == 0)


def check_same(name: str, net: Net, model: nn.Module, images: Tensor) -> None:
    """Raises an error unless both give the same scores (in the TEST phase, where nothing is random)."""
    if net.phase == 0:
        return
    net.forward()
    scores, = net.keep_blobs
    with torch.no_grad():
        torch.testing.assert_close(model(images), net.blobs[scores].tensor.detach(), rtol=1e-3, atol=1e-3,
                                   msg=lambda text: f"{name} is not the same network in both: {text}")


def forward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """One forward pass without gradients."""
    def run() -> Tensor:
        with torch.no_grad():
            return F.softmax(model(images), 1)
    return run


def training(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """One forward and backward pass."""
    labels = torch.zeros(len(images), dtype=torch.long)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
    return run


def training_ours(net: Net) -> Callable[[], object]:
    """The same with a net of ours."""
    def run() -> None:
        net.clear_param_diffs()
        net.forward_backward()
    return run


def fastest(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds of each contender's fastest pass; they take turns, for `seconds` each and at least five times."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    while sum(map(sum, times.values())) < seconds * len(contenders) or min(map(len, times.values())) < 5:
        for name, run in contenders.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: min(values) for name, values in times.items()}


def measure_overhead(seconds: float, blocks: int = 50) -> None:
    """Prints what a layer costs beyond its arithmetic, in a net of 4 * `blocks` layers that have little to do."""
    n = NetSpec()
    top = n.data = layers.Input(shape={"dim": [1, 4, 6, 6]})
    for k in range(blocks):
        top = layers.Convolution(top, num_output=4, kernel_size=3, pad=1, weight_filler={"type": "msra"})
        top = layers.ReLU(top, in_place=True)
        top = layers.Pooling(top, pool=params.Pooling.MAX, kernel_size=3, stride=1, pad=1)
        top = layers.Power(top, scale=0.5)
        n[f"power{k}"] = top
    net = Net(proto.Document(n.to_proto(), proto.BVLC), "TEST", seed=1)
    net.blobs["data"].data[...] = torch.randn(net.blobs["data"].shape)
    kernels = [(blobs[0].tensor, blobs[1].tensor) for blobs in net.params.values()]

    def by_hand() -> None:
        with torch.no_grad():
            x = net.blobs["data"].tensor
            for weight, bias in kernels:
                x = F.max_pool2d(torch.relu(F.conv2d(x, weight, bias, padding=1)), 3, 1, 1) * 0.5

    times = fastest({"by hand": by_hand, "ours": net.forward}, seconds)
    count = 4 * blocks
    own = (times["ours"] - times["by hand"]) / count
    print(f"\n{count} small layers: {1e6 * times['ours'] / count:.1f} us a layer forward, {1e6 * own:.1f} us of it "
          "beyond PyTorch's functions")


if __name__ == "__main__":
    main()
