"""Rounds and rankings, against the authors' runs (which `test_estimators` follows on a net) and in closed cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from increg import ranking

RUNS = json.loads((Path(__file__).parents[1] / "golden" / "methods" / "orthoreg" / "cases.json").read_text())["ranking"]["runs"]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['estimator']}-{run['percent']}-{run['rounds']}")
def test_round_ratios(run: dict) -> None:
    """To the last bit, or counts would differ."""
    if run["thresholds"]:
        ratios = ranking.threshold_ratios([percent / 100 for percent in json.loads(run["percent"])])
    else:
        ratios = ranking.round_ratios(int(run["percent"]) / 100, run["rounds"])
    assert ratios == run["round_ratios"]
    for ratio, each in zip(ratios, run["each_round"]):
        assert ranking.count_to_prune(ratio, each["filters_before"]) == sum(each["pruned_counts"])


def test_least_over_layers() -> None:
    chosen = ranking.least([torch.tensor([3.0, 1.0]), torch.tensor([2.0, 5.0, 0.5])], 3)
    assert [part.tolist() for part in chosen] == [[False, True], [True, False, True]]


def test_equal_scores_go_in_order() -> None:
    """All of the first layer, which gets one back."""
    chosen = ranking.least([torch.zeros(3), torch.zeros(3)], 3)
    assert [part.tolist() for part in chosen] == [[False, True, True], [False, False, False]]


def test_a_layer_keeps_its_best_filter() -> None:
    chosen = ranking.least([torch.tensor([0.1, 0.3, 0.2]), torch.tensor([9.0, 8.0])], 4)
    assert [part.tolist() for part in chosen] == [[True, False, True], [False, True]]
    assert not ranking.least([torch.tensor([0.0])], 1)[0].any()


def test_protection() -> None:
    importance = torch.arange(10.0, 0, -1)
    assert ranking.protect(importance, 10).tolist() == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1e7]
    assert ranking.protect(importance, 20).tolist()[-2:] == [1e7, 1e7]
    assert ranking.protect(importance, 10, by_number=False)[0] == 1e7
    assert ranking.protect(torch.ones(1), 64).tolist() == [1e7]
    assert importance[9] == 1
