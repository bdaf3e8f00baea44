"""The text of the experiments' solvers: settings in groups, with a word on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Settings = Mapping[str, object]

#: Fields whose values are words of Caffe's, not texts.
ENUMS = "solver_mode", "coupled_rows", "pick_pruned", "decay"

#: The settings of all of the reference's ImageNet experiments.
REFERENCE: Settings = {"base_lr": 0.0005, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 0.00025, "iter_size": 2,
                       "max_iter": 10000000}
INCREG: Settings = {"prune_method": "Reg_Col", "regularization_type": "Reg_Col", "AA": 0.00025, "target_reg": 2.5}
SPATIAL: Settings = {"prune_method": "Reg_Col", "regularization_type": "RegSpa_Col", "AA": 0.00025, "target_reg": 2.03915}
PASSES: Settings = {"iter_size_prune": 1, "iter_size_losseval": 2, "iter_size_retrain": 2, "iter_size_final_retrain": 8}
SCHEDULE: Settings = {"acc_borderline": -1, "losseval_interval": 20000, "retrain_test_interval": 1000}


def solver(title: str, net: str, groups: Sequence[Settings]) -> str:
    """A solver prototxt: `title` as a comment, the net, then the groups of fields, a blank line between them."""
    blocks = [f'# {title}\nnet: "{net}"']
    blocks += ["\n".join(f"{name}{'' if text[0] == '{' else ':'} {text}" for name, text in _lines(group))
               for group in groups if group]
    return "\n\n".join(blocks) + "\n"


def _lines(group: Settings) -> list[tuple[str, str]]:
    """One line a value; several of a repeated field."""
    return [(name, _value(name, entry)) for name, value in group.items()
            for entry in (value if isinstance(value, list | tuple) else [value])]


def _value(name: str, value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + " ".join(f"{key}: {text}" for key, text in _lines(value)) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and name not in ENUMS:
        return f'"{value}"'
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def testing(test_iter: int) -> Settings:
    """Tests of `test_iter` batches, when the schedule asks for them."""
    return {"test_iter": test_iter, "test_interval": 1000000, "test_initialization": False, "display": 20}


def snapshots(prefix: str, interval: int = 1000, seed: int | None = None) -> Settings:
    """A snapshot every `interval` iterations."""
    return {"snapshot": interval, "snapshot_prefix": prefix, **({} if seed is None else {"random_seed": seed})}
