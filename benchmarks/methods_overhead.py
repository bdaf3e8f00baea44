"""What each pruning method adds to one training iteration of ResNet-50 (all 53 convolutions pruned, images made up).

    python benchmarks/methods_overhead.py [--methods GReg1_Row SFP_Row ...] [--batch 1] [--rounds 3] [--threads 1] [--gpu 0]

One net and one solver of each method in turn, training and pruning iteration by iteration side by side: the pruned net
first takes a plain step (its hook left out), then a step with the hook, so both meet the same memory and machine. The least
of all rounds counts, processor time on a CPU. What is spent in the hook is shown by itself, as other work on the machine
blurs the difference of the two (on a GPU it is the time to queue the work). For a method that acts now and then (SFP at
the end of an epoch, L1 once) the hook's time in an iteration that acts comes last.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import chdir, redirect_stdout

import torch
from resnet50_pruning import REG, make_solver, parse
from timing import HookClock

from caffe_compat import Solver
from increg.methods import METHODS, method_names
from increg.methods.one_shot import OneShot
from increg.methods.soft import SoftPruning

NEVER = 1000000
#: Settings under which a method is in the middle of pruning for as long as this measures.
SETTINGS = {
    "Reg": REG, "RegSpa": REG,
    **dict.fromkeys(("SFP", "ASFP", "SRFP", "ASRFP"), f"soft_prune_param {{ epoch: {NEVER} }}"),
    **dict.fromkeys(("L1", "L2", "Largest", "Random"), f"one_shot_param {{ iter: {NEVER} }}"),
    **dict.fromkeys(("GlobalL1", "GlobalL2", "BNScale", "Taylor", "Fisher", "GraSP", "RD"), f"rank_param {{ iter: {NEVER} }}"),
    "OrthoReg": f"orthoreg_param {{ rank_param {{ iter: {NEVER} }} }}",
    "DSA": f"dsa_param {{ iterations: {NEVER} }}",
}
RATIO = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", metavar="METHOD", help="prune_method words (default: one of each)")
    args, device = parse(parser, batch=1, rounds=5)
    names = args.methods or [f"{core}_{next(iter(METHODS.get(core).units))}" for core in METHODS.names()]
    if unknown := set(names) - set(method_names()):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(method_names())}")
    print(f"ResNet-50, batch {args.batch}, {args.threads} thread(s), {device}; ms an iteration, the least of {args.rounds}")
    print(f"{'':14}{'training':>10}{'pruning':>10}{'adds':>8}{'in its hook':>13}{'':>8}{'acting':>10}")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):  # for the snapshot that pruning starts with
        for name in names:
            plain, busy, inside, acting = measure(name, args.batch, args.rounds, device)
            print(f"{name:14}{1e3 * plain:10.1f}{1e3 * busy:10.1f}{100 * (busy / plain - 1):7.1f}%{1e3 * inside:13.2f}"
                  f"{100 * inside / plain:7.1f}%" + (f"{1e3 * acting:10.2f}{100 * acting / plain:7.1f}%" if acting else ""),
                  flush=True)


def measure(name: str, batch: int, rounds: int, device: torch.device) -> tuple[float, float, float, float | None]:
    """Seconds of a plain iteration, of one that prunes, in its hook, and in the hook when a method acts that does so now
    and then."""
    solver = make_solver(device, batch, name, SETTINGS.get(name.rpartition("_")[0], ""), RATIO)
    hooks, method = list(solver.hooks), solver.hooks[0].method
    clock = HookClock(solver)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        solver.step(2)
        plain, busy, inside, acting = [], [], [], []
        for _ in range(rounds):
            solver.hooks[:] = []
            plain.append(timed(solver, device)[0])
            solver.hooks[:] = hooks
            seconds, hooked = timed(solver, device, clock)
            busy.append(seconds)
            inside.append(hooked)
            if isinstance(method, SoftPruning):
                method.param.epoch = 1  # every iteration is an epoch's end
                acting.append(timed(solver, device, clock)[1])
                method.param.epoch = NEVER
        if isinstance(method, OneShot):
            method.param.iter = 0
            acting.append(timed(solver, device, clock)[1])
    return min(plain), min(busy), min(inside), min(acting) if acting else None


def timed(solver: Solver, device: torch.device, clock: HookClock | None = None) -> tuple[float, float]:
    """Seconds of one iteration, on the clock with the GPU's queue emptied before and after it, on a CPU processor time; and
    processor seconds in its hooks."""
    now = time.process_time if device.type == "cpu" else time.perf_counter
    before = clock.seconds if clock else 0.0
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = now()
    solver.step(1)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return now() - start, (clock.seconds if clock else 0.0) - before


if __name__ == "__main__":
    main()
