"""What pruning adds to one training iteration of ResNet-50 (all 53 convolutions pruned, images made up).

    python benchmarks/resnet50_pruning.py [--batch 16] [--iterations 2] [--rounds 3] [--threads 1] [--gpu 0]

The same solver with and without pruning, in turns. Pruning's own work does not depend on the batch: with the 16 images
of the published experiments it weighs the least, with one image the most.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from statistics import median

import torch
from timing import HookClock, seconds_per_iteration, show, show_share

from caffe_compat import Solver, create_solver, proto
from caffe_compat.memory import keep_freed_memory

NET = Path(__file__).parents[1] / "prototxt" / "resnet50_pruning" / "deploy.prototxt"
#: The settings of the reference's ImageNet experiments, their passes an iteration aside.
SOLVER = '''
base_lr: 0.0005 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.00025 max_iter: 1000000 random_seed: 1
acc_borderline: -1 losseval_interval: 20000
'''
REG = "AA: 0.00025 target_reg: 2.5"
ENDS = '''
layer {
  name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param {
    shape { dim: %d dim: 3 dim: 224 dim: 224 } data_filler { type: "gaussian" std: 1 }
    shape { dim: %d } data_filler { type: "constant" value: 7 }
  }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc1000" bottom: "label" top: "loss" }
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args, device = parse(parser, batch=16, iterations=2, rounds=3)
    solvers = {"training": make_solver(device, args.batch, "None"),
               "pruning": make_solver(device, args.batch, "Reg_Col", REG)}
    clock = None
    with tempfile.TemporaryDirectory() as folder, chdir(folder):  # for the snapshot that pruning starts with
        if device.type == "cuda":
            seconds = _on_gpu(solvers, args.iterations, args.rounds)
        else:
            clock = HookClock(solvers["pruning"])
            seconds = seconds_per_iteration({name: solver.step for name, solver in solvers.items()}, args.iterations,
                                            args.rounds, warm_up=1)
    show(seconds, "training")
    show_share(seconds["training"], seconds["pruning"], clock)


def parse(parser: argparse.ArgumentParser, **numbers: int) -> tuple[argparse.Namespace, torch.device]:
    """The command line, with an option for each of `numbers`, threads and a GPU among them; makes the process ready."""
    for name, default in (numbers | {"threads": 1}).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default {default})")
    parser.add_argument("--gpu", type=int, help="the GPU to run on; without it the CPU")
    args = parser.parse_args()
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(args.threads)
    return args, torch.device("cpu" if args.gpu is None else f"cuda:{args.gpu}")


def make_solver(device: torch.device, batch: int, method: str, settings: str = "", ratio: float = 0.9) -> Solver:
    """A solver of the pruning experiments' ResNet-50, whose BatchNorm layers have fixed statistics."""
    solver = proto.parse_text(SOLVER + settings, "SolverParameter", dialect=proto.INCREG)
    solver.message.prune_method = method
    data, loss = proto.parse_text(ENDS % (batch, batch), "NetParameter", dialect=proto.INCREG).message.layer
    net = solver.message.net_param
    net.CopyFrom(proto.read_text(NET, "NetParameter", dialect=proto.INCREG).message)
    net.layer[0].CopyFrom(data)
    net.layer.add().CopyFrom(loss)
    for layer in net.layer:
        if layer.type == "Convolution":
            layer.convolution_param.weight_filler.type = "msra"
            if not (method.startswith("RegSpa") and layer.convolution_param.kernel_size[0] == 1):
                layer.prune_param.prune_ratio = ratio
            # Rows that are added to others' do not follow pruned columns, as in the reference's net.
            layer.prune_param.IF_update_row_col = not layer.name.endswith(("conv1", "branch1", "branch2c"))
    built = create_solver(solver, device=device, keep_blobs=False)
    for layer in built.net.layers:
        if layer.type == "BatchNorm":
            for blob in layer.blobs[1:]:  # variance and factor; the mean is 0
                blob.data[...] = 1
    return built


def _on_gpu(solvers: dict[str, Solver], iterations: int, rounds: int) -> dict[str, float]:
    """Seconds on the clock for one iteration, the GPU's queue emptied before and after each round."""
    def timed(run: Callable[[int], None]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(iterations)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / iterations

    times: dict[str, list[float]] = {name: [] for name in solvers}
    for i in range(rounds + 1):  # the first round warms up
        for name, solver in solvers.items():
            seconds = timed(solver.step)
            if i:
                times[name].append(seconds)
    return {name: median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
