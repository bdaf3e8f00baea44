"""The shortened versions of solvers: what is divided, what is multiplied, and where that ends."""

from __future__ import annotations

from typing import Any

import pytest

from caffe_compat import proto
from increg import experiments
from increg.aims import FIRST_INCREASE, HIGHEST_CEILING, ceiling
from increg.experiments import Quick
from increg.quick import FILLED, hurry_net, hurry_solver


def _hurried(text: str, quick: Quick) -> Any:
    message = proto.parse_text(text, "SolverParameter", dialect=proto.INCREG).message
    hurry_solver(message, quick)
    return message


def test_growth_and_ceiling() -> None:
    """Ten times as fast and ten times as strong: the same push, lr * punishment summed over the iterations, in a tenth of
    them."""
    text = 'prune_method: "Reg_Col" AA: 0.001 target_reg: 0.05 losseval_interval: 2000'
    param = _hurried(text, Quick(factor=10, strength=10))
    assert (param.AA, param.target_reg) == (pytest.approx(0.1), pytest.approx(0.5))
    assert param.losseval_interval == 200


def test_the_ceiling_has_a_limit() -> None:
    """Beyond the limit of IncReg's ceiling, growth takes as many iterations as the factor says, not fewer."""
    before = ceiling(1.0, FIRST_INCREASE) / 0.001
    param = _hurried('prune_method: "Reg_Col" AA: 0.001 target_reg: 1', Quick(factor=50, strength=50))
    limited = ceiling(param.target_reg, FIRST_INCREASE)
    assert limited == pytest.approx(HIGHEST_CEILING)
    assert limited / param.AA == pytest.approx(before / 50)


@pytest.mark.parametrize(("given", "left"), [("", 500), ("samples: 20000", 1000), ("samples: 300", 300)])
def test_statistics_need_some_samples(given: str, left: int) -> None:
    param = _hurried(f'prune_method: "RD_Row" rank_param {{ iter: 200 interval: 10 {given} }}', Quick(factor=20))
    assert (param.rank_param.iter, param.rank_param.interval, param.rank_param.samples) == (10, 1, left)


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "resnet34"])
def test_new_weights_are_filled(name: str) -> None:
    """Nets that are given trained weights have no fillers; without the weights every layer must have one all the same."""
    path = experiments.folder(name) / "train_val.prototxt"
    net = hurry_net(proto.read_text(path, "NetParameter").message, Quick(), new=True)
    layers = [layer for layer in net.layer if layer.type in FILLED]
    assert layers and all(getattr(layer, FILLED[layer.type]).weight_filler.type in ("msra", "xavier") for layer in layers)
    given = hurry_net(proto.read_text(path, "NetParameter").message, Quick(), new=False)
    assert given.layer == proto.read_text(path, "NetParameter").message.layer


def test_other_methods_have_limits_of_their_own() -> None:
    param = _hurried('prune_method: "GReg1_Row" greg_param { reg_granularity_prune: 1e-4 reg_upper_limit: 1 }',
                     Quick(factor=10, strength=3))
    assert param.greg_param.reg_granularity_prune == pytest.approx(30e-4)
    assert param.greg_param.reg_upper_limit == pytest.approx(3)
