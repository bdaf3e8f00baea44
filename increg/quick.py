"""The minutes-long version of an experiment: fewer iterations, smaller batches, punishments that grow faster."""

from __future__ import annotations

from typing import Any

from .experiments import Quick

#: Counts of iterations, which are divided by `Quick.factor`, and what is raised a little every iteration.
INTERVALS = "losseval_interval", "retrain_test_interval"
GROWTHS = ("AA",)
#: Passes an iteration: one.
PASSES = "iter_size", "iter_size_prune", "iter_size_losseval", "iter_size_retrain", "iter_size_final_retrain"


def hurry_solver(message: Any, quick: Quick) -> None:
    """Changes a SolverParameter. Plain training gets fewer iterations; a schedule that prunes ends by itself, earlier."""
    factor = quick.factor
    if getattr(message, "prune_method", "None") == "None":
        message.max_iter = max(1, message.max_iter // factor)
        message.test_interval = message.max_iter
        for k, step in enumerate(message.stepvalue):
            message.stepvalue[k] = max(1, step // factor)
        if message.stepsize:
            message.stepsize = max(1, message.stepsize // factor)
    else:
        for name in INTERVALS:
            if getattr(message, name):
                setattr(message, name, max(1, getattr(message, name) // factor))
        for name in GROWTHS:
            setattr(message, name, getattr(message, name) * factor)
    if quick.test_iter:
        message.test_iter[:] = [min(count, quick.test_iter) for count in message.test_iter]
    if quick.batch:
        for name in PASSES:
            if hasattr(message, name):
                setattr(message, name, 1)


def hurry_net(message: Any, quick: Quick, new: bool) -> Any:
    """Changes a NetParameter, and returns it. `new` weights have no stored statistics for BatchNorm to use."""
    for layer in message.layer:
        if layer.type == "Data" and quick.batch:
            phases = [rule.phase for rule in layer.include]
            layer.data_param.batch_size = quick.batch[bool(phases) and phases[0] == 1]  # TEST is 1
        if layer.type == "BatchNorm" and new:
            layer.batch_norm_param.ClearField("use_global_stats")
    return message


def plain_training(solver: Any) -> Any:
    """A SolverParameter that trains a little, for want of trained weights, as `solver` does while it prunes."""
    message = type(solver)()
    message.CopyFrom(solver)
    for name in ("prune_method", "regularization_type", "AA", "target_reg", "acc_borderline", "losseval_interval",
                 "retrain_test_interval", *PASSES[1:]):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    message.max_iter = TRAINING
    return message


#: Iterations of that training, before they are divided.
TRAINING = 10000
