"""`PruneConfig`: the pruning fields of a solver prototxt, read and checked once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from caffe_compat.errors import SolverError
from caffe_compat.proto import enum_name
from caffe_compat.solver.regularize import REGULARIZATIONS

from .methods import PruneMethod, RegRowAsReference, RegSpaAsReference, find_method, method_names
from .units import Row, Unit

#: The one pair of prune_method and regularization_type that means a third thing, in the reference's spatial recipes.
SPATIAL_RECIPE = "Reg_Col", "RegSpa_Col"
#: The states that have an iter_size of their own, and its field.
PASSES = {"prune": "iter_size_prune", "losseval": "iter_size_losseval", "retrain": "iter_size_retrain",
          "final_retrain": "iter_size_final_retrain"}


@dataclass(frozen=True)
class PruneConfig:
    """What a SolverParameter of the increg dialect says about pruning; fields as there, unless a comment tells more.

    `where` is the file, for messages. `as_reference` follows the reference's defects, see the package's docstring, in
    the methods that it has.
    """

    where: str
    name: str                             # prune_method
    method: type[PruneMethod]
    unit: Unit
    settings: Any                         # the method's own message (greg_param ...), None if it has none
    seed: int                             # random_seed, -1 if there is none
    max_iter: int
    iter_size: int                        # passes an iteration while pruning: iter_size times iter_size_prune
    ratios: list[Any]                     # prune_ratios
    target: Any                           # prune_target, None if there is none
    coupled: str                          # coupled_rows
    least_groups: int                     # groups that a layer keeps, whatever it is asked to prune
    unit_punishment: float                # AA
    scheme: int                           # 1, or 2 without IF_scheme1_when_Reg_rank
    target_reg: float                     # the ceiling of punishments, before the multiplier of the stage
    speedup: float
    compression: float                    # compRatio
    speedup_counts_fc: bool               # IF_speedup_count_fc
    compression_counts_conv: bool         # IF_compr_count_conv
    update_row_col: bool                  # IF_update_row_col
    early_stop: bool                      # IF_eswpf
    use_acc1: bool                        # IF_use_acc1
    acc_borderline: float
    baseline_acc: float
    losseval_interval: int
    retrain_test_interval: int
    accuracy_output: str                  # "" for all outputs with "ccuracy" in their names
    passes: dict[str, int] = field(default_factory=dict)  # iter_size_*, by state
    as_reference: bool = False

    @property
    def staged(self) -> bool:
        """Whether pruning goes on in stages for as long as the accuracy allows; else there is one stage."""
        return self.acc_borderline > 0

    @property
    def by_rows(self) -> bool:
        """Whether pruned ratios are those of rows, not columns."""
        return isinstance(self.unit, Row)


def prune_method(param: Any) -> str:
    """The method that a SolverParameter asks for, "None" if it asks for none (or its dialect has no pruning)."""
    return getattr(param, "prune_method", "None")


def read_config(param: Any, where: str, as_reference: bool = False) -> PruneConfig | None:
    """The pruning settings of a SolverParameter, None if it does not ask for pruning.

    Raises `SolverError` for settings that contradict each other or can prune nothing, `UnknownType` for an unknown method.
    """
    name, regularization = prune_method(param), param.regularization_type
    if name == "None":
        if regularization in method_names():
            raise SolverError(f"{where}: regularization_type is {regularization}, a pruning method, but prune_method is None. "
                              f'Set prune_method: "{regularization}" to prune, or take regularization_type out to train')
        return None
    name, method, unit = _method(name, regularization, where, as_reference)
    if enum_name(param, "snapshot_format") == "HDF5":
        raise SolverError(f"{where}: snapshot_format is HDF5, which has no place for the state of pruning; take it out")
    config = PruneConfig(
        where=where, name=name, method=method, unit=unit,
        settings=getattr(param, method.settings) if method.settings else None, seed=param.random_seed, max_iter=param.max_iter,
        iter_size=param.iter_size * param.iter_size_prune,
        ratios=list(param.prune_ratios), target=param.prune_target if param.HasField("prune_target") else None,
        coupled=enum_name(param, "coupled_rows") if param.HasField("coupled_rows") else method.coupled,
        least_groups=param.least_groups, unit_punishment=param.AA, scheme=1 if param.IF_scheme1_when_Reg_rank else 2,
        target_reg=param.target_reg, speedup=param.speedup, compression=param.compRatio,
        speedup_counts_fc=param.IF_speedup_count_fc, compression_counts_conv=param.IF_compr_count_conv,
        update_row_col=param.IF_update_row_col, early_stop=param.IF_eswpf, use_acc1=param.IF_use_acc1,
        acc_borderline=param.acc_borderline, baseline_acc=param.baseline_acc,
        losseval_interval=param.losseval_interval, retrain_test_interval=param.retrain_test_interval,
        accuracy_output=param.accuracy_output,
        passes={state: getattr(param, name) for state, name in PASSES.items()},
        as_reference=as_reference and method.staged)
    _check(config)
    return config


def _method(name: str, regularization: str, where: str, as_reference: bool) -> tuple[str, type[PruneMethod], Unit]:
    """prune_method is the one word; regularization_type may repeat it, or name a plain weight decay."""
    spatial = (name, regularization) == SPATIAL_RECIPE
    name = "RegSpa_Col" if spatial else name
    method, unit = find_method(name, where)
    if regularization in method_names() and not spatial and regularization != name:
        raise SolverError(f"{where}: prune_method is {name} and regularization_type is {regularization}, which contradict each "
                          f"other. prune_method alone decides; let regularization_type repeat it, or take it out. (Only "
                          f"{SPATIAL_RECIPE[0]} with {SPATIAL_RECIPE[1]} has a meaning as a pair: {SPATIAL_RECIPE[1]})")
    if as_reference and name == "Reg_Row":
        method = RegRowAsReference
    if as_reference and spatial:
        method = RegSpaAsReference
    return name, method, unit


def _check(config: PruneConfig) -> None:
    def fail(message: str) -> None:
        raise SolverError(f"{config.where}: {message}")

    config.method(config)  # which checks its own settings
    if config.baseline_acc < config.acc_borderline:
        fail(f"baseline_acc is {config.baseline_acc:g}, below acc_borderline, {config.acc_borderline:g}: the accuracy before "
             "pruning is already below the least one accepted. Set baseline_acc to the accuracy of the weights that pruning "
             "starts from, and acc_borderline to at most that")
    for name in ("losseval_interval", "retrain_test_interval"):
        if getattr(config, name) < 0:
            fail(f"{name} counts iterations; found {getattr(config, name)}")
    for state, count in config.passes.items():
        if count < 1:
            fail(f"{PASSES[state]} is {count}, expected 1 or more")
    if config.staged and not config.retrain_test_interval:
        fail(f"acc_borderline is {config.acc_borderline:g}, so each stage is judged by its accuracy; set retrain_test_interval "
             "to the iterations between two tests")
    if config.staged and not config.method.staged:
        fail(f"acc_borderline is {config.acc_borderline:g}, which asks for stages that prune more and more; {config.name} "
             "prunes in one. Set acc_borderline: -1")
    if config.least_groups < 1:
        fail("least_groups is 0, expected 1 or more: a layer that loses all its groups passes nothing on")


def register_regularizations() -> None:
    """Enters the methods' names as weight decays: the reference's solvers repeat prune_method in regularization_type, and
    with it L2 stays."""
    for name in method_names():
        if name not in REGULARIZATIONS:
            REGULARIZATIONS.add(name)(REGULARIZATIONS.get("L2"))
