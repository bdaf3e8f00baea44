"""The masked layer against the authors' code: convolution, batch norm, mask, ReLU, as prototxt layers, with masks on
parameters, or straight through on outputs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from pruning import layer_state

from caffe_compat import Net, proto
from increg import filters
from increg.methods import dsa_solve
from increg.methods.dsa_mask import ActivationMasks, FilterMasks

GOLDEN = Path(__file__).parents[1] / "golden" / "methods" / "dsa"
CASES = json.loads((GOLDEN / "cases.json").read_text())["layer"]["cases"]


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "layer.npz") as file:
        return dict(file)


class Masked:
    """A recorded case as a net; `training` is that of batch norm, not the phase."""

    def __init__(self, case: dict, training: bool, device: torch.device, fused: bool) -> None:
        data, name = recorded(), case["name"]
        shape = data[f"{name}/x"].shape
        relu = 'layer { name: "relu" type: "ReLU" bottom: "y" top: "out" }' if case["relu"] else ""
        self.out = "out" if case["relu"] else "y"
        text = f"""force_backward: true
        layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {' '.join(f'dim: {n}' for n in shape)} }} }} }}
        layer {{ name: "conv" type: "Convolution" bottom: "x" top: "y" convolution_param {{ num_output: {case['co']}
          kernel_size: {case['k']} stride: {case['s']} pad: {case['p']} bias_term: false }} }}
        layer {{ name: "bn" type: "BatchNorm" bottom: "y" top: "y"
          batch_norm_param {{ use_global_stats: {str(not training).lower()} }} }}
        layer {{ name: "scale" type: "Scale" bottom: "y" top: "y" scale_param {{ bias_term: true }} }} {relu}"""
        self.net = Net(proto.parse_text(text, "NetParameter"), "TRAIN", keep_blobs=not fused, device=device)
        state = f"{name}/state"
        blobs = self.net.params
        blobs["conv"][0].data[...] = data[f"{state}/conv.weight"]
        for blob, kind in zip(blobs["scale"], ("weight", "bias")):
            blob.data[...] = data[f"{state}/bn.{kind}"]
        for blob, kind in zip(blobs["bn"], ("running_mean", "running_var")):
            blob.data[...] = data[f"{state}/bn.{kind}"]
        blobs["bn"][2].data[...] = 1
        self.net.blobs["x"].data[...] = data[f"{name}/x"]
        layer = layer_state("conv", blobs["conv"][0].shape)
        layer.weight = blobs["conv"][0]
        self.masks = (ActivationMasks if case["st"] else FilterMasks)(self.net, [layer], filters.places(self.net, [layer]))
        self.grad = torch.from_numpy(data[f"{name}/grad_of_output"]).to(device)

    def run(self, mask: np.ndarray) -> dict[str, torch.Tensor]:
        """Output and gradients with a mask on the filters."""
        net = self.net
        with torch.no_grad():
            self.masks.put(torch.from_numpy(mask).to(net.device))
        net.forward()
        y = net.blobs[self.out].tensor.detach().clone()
        net.clear_param_diffs()
        net.blobs[self.out].grad = self.grad
        net.backward()
        with torch.no_grad():
            grad_mask = self.masks.take()
        blobs = net.params
        found = {"y": y, "grad_conv": blobs["conv"][0].grad, "grad_bn_weight": blobs["scale"][0].grad,
                 "grad_bn_bias": blobs["scale"][1].grad, "grad_mask": grad_mask, "grad_x": net.blobs["x"].grad}
        return {name: tensor.cpu() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("mode", ["train_ones", "train_half", "eval_ones", "eval_half"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_as_recorded(case: dict, mode: str, device: torch.device) -> None:
    data = recorded()
    found = Masked(case, mode.startswith("train"), device, fused=False).run(data[f"{case['name']}/{mode}/mask"])
    assert len(found) == 6
    for name, values in found.items():
        wanted = data[f"{case['name']}/{mode}/{name}"]
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_parameters_come_back(case: dict) -> None:
    """Bit for bit, as the solver's networks run: BatchNorm and Scale as one. The next pass is not masked."""
    masked = Masked(case, True, torch.device("cpu"), fused=True)
    before = {name: [blob.tensor.detach().clone() for blob in masked.net.params[name]] for name in ("conv", "scale")}
    assert not masked.run(np.zeros(case["co"], np.float32))["y"].any()
    masked.net.forward()
    assert masked.net.blobs[masked.out].tensor.any()
    for name, tensors in before.items():
        for blob, tensor in zip(masked.net.params[name], tensors):
            assert torch.equal(blob.tensor, tensor)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_chain_as_recorded(case: dict, device: torch.device) -> None:
    """From theta through the keep ratio, probabilities and the drawn mask, and all the way back."""
    data, name = recorded(), f"{case['name']}/chain"
    kinds = {"conv": ("conv.weight", lambda w: w.abs().flatten(1).sum(1)), "bn": ("bn.weight", torch.abs)}
    key, importance_of = kinds[case["imp"]]
    importance = importance_of(torch.from_numpy(data[f"{case['name']}/state/{key}"]))[None].to(device)
    real = torch.ones_like(importance, dtype=torch.bool)
    theta = torch.tensor([case["theta"]], device=device, requires_grad=True)
    keep = torch.sigmoid(theta)
    assert keep.item() == pytest.approx(case["keep_ratio"], rel=1e-6)
    p = dsa_solve.KeepProbability.apply(keep, importance, case["b2"], real)
    # their search stops within 0.02 of log beta1, which is what p and its gradient are recorded for
    log_beta1 = dsa_solve.solve(importance, keep.detach(), case["b2"], real).item()
    assert log_beta1 == pytest.approx(case["log_beta1"], abs=0.02)
    at = torch.tensor([case["log_beta1"]], device=device)
    theirs = dsa_solve.probabilities((importance + 1e-8).log(), at[:, None], case["b2"])
    np.testing.assert_allclose(theirs.cpu()[0], data[f"{name}/p"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(p.detach().cpu()[0], data[f"{name}/p"], rtol=0, atol=0.02 * case["b2"] / 4)
    grad_p = torch.from_numpy(data[f"{name}/grad_p"]).to(device)
    np.testing.assert_array_equal(data[f"{name}/grad_p"], data[f"{name}/grad_mask"])  # straight through the draw
    slopes = dsa_solve.slopes(importance, at, case["b2"], real)
    d_theta = (grad_p * slopes).sum() * keep * (1 - keep)
    assert d_theta.item() == pytest.approx(case["d_loss_d_theta"], rel=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_chain_on_a_net(case: dict) -> None:
    """The drawn mask's outputs and gradient, batch norm in evaluation mode."""
    data, name = recorded(), f"{case['name']}/chain"
    found = Masked(case, False, torch.device("cpu"), fused=False).run(data[f"{name}/mask"])
    for key in ("y", "grad_mask"):
        wanted = data[f"{name}/{key}"]
        np.testing.assert_allclose(found[key], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max(), err_msg=key)
