"""The minutes-long version of an experiment: fewer iterations, smaller batches, punishments that grow faster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .aims import FIRST_INCREASE, HIGHEST_CEILING, ceiling
from .experiments import Quick

#: Counts of iterations and samples, which are divided by `Quick.factor`, and what grows by a bit in each iteration, which is
#: multiplied by it; in SolverParameter and in the methods' own messages.
INTERVALS: dict[str, tuple[str, ...]] = {
    "": ("losseval_interval", "retrain_test_interval"),
    "greg_param": ("stabilize_reg_interval",),
    "soft_prune_param": ("epoch",),
    "afp_param": ("prune_iter",),
    "dsa_param": ("iterations",),
    "rank_param": ("iter", "interval", "samples"),
    "orthoreg_param": ("finetune",),
    "orthoreg_param.rank_param": ("iter", "interval", "samples"),
}
#: What they are not divided below, if it is not 1: every class has to turn up.
LEAST = {"samples": 500}
GROWTHS: dict[str, tuple[str, ...]] = {
    "": ("AA",),
    "greg_param": ("reg_granularity_pick", "reg_granularity_prune"),
}
#: What those grow to, and penalties that do not grow.
LIMITS: dict[str, tuple[str, ...]] = {
    "": ("target_reg",),
    "greg_param": ("reg_upper_limit_pick", "reg_upper_limit"),
    "afp_param": ("alpha",),
}
#: Passes an iteration: one.
PASSES = "iter_size", "iter_size_prune", "iter_size_losseval", "iter_size_retrain", "iter_size_final_retrain"
#: Layer types whose weights are filled, and the fields that say how.
FILLED = {"Convolution": "convolution_param", "InnerProduct": "inner_product_param"}
#: Iterations of `plain_training`, before they are divided.
TRAINING = 10000


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
        for part, name in _given(message, INTERVALS):
            count = getattr(part, name)
            setattr(part, name, max(min(count, LEAST.get(name, 1)), count // factor))
        incremental = _incremental_strength(message, quick.strength)
        strength = {"AA": incremental, "target_reg": incremental}
        for part, name in _given(message, GROWTHS):
            setattr(part, name, getattr(part, name) * factor * strength.get(name, quick.strength))
        for part, name in _given(message, LIMITS):
            setattr(part, name, getattr(part, name) * strength.get(name, quick.strength))
    if quick.test_iter:
        message.test_iter[:] = [min(count, quick.test_iter) for count in message.test_iter]
    if quick.batch:
        for name in PASSES:
            if hasattr(message, name):
                setattr(message, name, 1)


def _incremental_strength(message: Any, strength: int) -> float:
    """`strength`, or what IncReg's ceiling can still be multiplied by before it meets its limit: growth alone, multiplied by
    more, would only prune groups before they are pushed anywhere."""
    if not message.target_reg:
        return strength
    return max(1.0, min(strength, float(HIGHEST_CEILING / ceiling(message.target_reg, FIRST_INCREASE))))


def _given(message: Any, names: dict[str, tuple[str, ...]]) -> Iterator[tuple[Any, str]]:
    """The (message, field) of `names` that are not 0, in `message` and those of its parts that it has."""
    for path, fields in names.items():
        owner = message
        for part in path.split(".") if path else []:
            owner = getattr(owner, part) if owner is not None and owner.HasField(part) else None
        if owner is not None:
            yield from ((owner, name) for name in fields if getattr(owner, name))


def hurry_net(message: Any, quick: Quick, new: bool) -> Any:
    """Changes a NetParameter, and returns it. `new` weights have no stored statistics for BatchNorm to use, and need fillers:
    a net that is given trained weights may have none, and would start with zeros, which stand for pruned weights."""
    for layer in message.layer:
        if layer.type == "Data" and quick.batch:
            phases = [rule.phase for rule in layer.include]
            layer.data_param.batch_size = quick.batch[bool(phases) and phases[0] == 1]  # TEST is 1
        if layer.type == "BatchNorm" and new:
            layer.batch_norm_param.ClearField("use_global_stats")
        for kind, param in FILLED.items():
            if new and layer.type == kind and not getattr(layer, param).HasField("weight_filler"):
                getattr(layer, param).weight_filler.type = "xavier"  # keeps deep nets without BatchNorm in bounds
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

