"""`caffe-compat explain`: how a solver trains each blob: its rate, decay and filler, and the learning rate over time."""

from __future__ import annotations

import argparse

from ..net import Net
from ..proto import read_text
from ..solver import lr_policy, setup
from ..solver.lr_policy import LR_POLICIES
from .flags import add_python_flag
from .show import table

QUIET = True
HELP = "show what a solver does: each blob's rate, decay and filler, and the learning rate by iteration"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The solver file."""
    parser.add_argument("solver", help="the solver definition (prototxt)")
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Prints two tables."""
    document = read_text(args.solver, "SolverParameter")
    param = document.message
    setup.check(param, args.solver)
    lr_policy.check(param, args.solver)
    net = setup.train_net(document, Net)
    print(f"{args.solver}: {param.type}, momentum {param.momentum:g}, weight_decay {param.weight_decay:g} "
          f"({param.regularization_type}), iter_size {param.iter_size}, max_iter {param.max_iter}")
    rows = []
    for learnable in net.learnable:
        layer = net.layer_dict[learnable.layer_name]
        rows.append([f"{learnable.layer_name}/{learnable.index}", " ".join(map(str, learnable.blob.shape)),
                     f"{param.base_lr * learnable.lr_mult:g}", f"{param.weight_decay * learnable.decay_mult:g}",
                     _filler(layer.param, learnable.index)])
    table(["blob", "shape", "rate at base_lr", "decay", "filler"], rows)
    print(f"\nlearning rate, lr_policy {param.lr_policy}: {LR_POLICIES.get(param.lr_policy).__doc__}")
    rates = list(_rates(param))
    table(["from iteration", "lr"], [[str(iteration), f"{rate:g}"] for iteration, rate in rates])


def _filler(param: object, index: int) -> str:
    fields = param.DESCRIPTOR.fields_by_name if param is not None else {}
    name = [name for name in ("weight_filler", "filler", "bias_filler") if name in fields][index:index + 1]
    if index and "bias_filler" in fields:
        name = ["bias_filler"]
    if not name:
        return "-"
    filler = getattr(param, name[0])
    settings = " ".join(f"{field.name} {value:g}" if isinstance(value, float) else f"{field.name} {value}"
                        for field, value in filler.ListFields() if field.name != "type")
    return f"{filler.type} {settings}".strip()


def _rates(param: object) -> list[tuple[int, float]]:
    """(iteration, rate) where the rate changes; for smooth policies at twenty points."""
    policy = LR_POLICIES.get(param.lr_policy)
    last = max(param.max_iter, 1)
    if param.lr_policy == "fixed":
        points = [0]
    elif param.lr_policy == "step":
        points = list(range(0, last, param.stepsize))[:40]
    elif param.lr_policy == "multistep":
        points = [0, *(value for value in param.stepvalue if value < last)]
    else:
        points = sorted({last * k // 20 for k in range(20)})
    rates, step = [], 0
    for iteration in points:
        while (following := lr_policy.next_step(param, iteration, step)) != step:
            step = following
        rates.append((iteration, float(policy(param, iteration, step))))
    return rates
