"""DSA's probabilities (Ning et al., ECCV 2020, arXiv 2004.02164): filters kept with p_i = 1 / (1 + (beta1 / w_i)^beta2).

beta1 is whatever makes mean(p) the group's keep ratio; the ratio's gradient follows by differentiating that condition.
Tables have a group in each row, `real` (bool) telling filters from padding. Nothing here waits for the device.

As in the authors' code: u = clamp(beta2 (log beta1 - log(w + 1e-8)), -20, 20), p = min(1 / (1 + exp u) + 0.01, 1), so that
no ratio up to 0.01 can be reached; the gradient knows neither the 0.01 nor the clamps. Their search stops within 0.02
of log beta1, and errors out where there is no solution; ours goes to float32's end, and to the nearest p.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON, LIMIT, FLOOR = 1e-8, 20.0, 0.01
#: Each step tries this many values between the ends at once, and leaves the interval between two of them.
CANDIDATES, STEPS = 3, 12
#: How far below a group's largest term, in logarithms, others are cut off in the gradient.
DEPTH = 50.0


def probabilities(log_importance: Tensor, log_beta1: Tensor, beta2: float) -> Tensor:
    """p for log(w + 1e-8) and a log beta1 that broadcasts to it."""
    u = (log_beta1 - log_importance).mul_(beta2).clamp_(-LIMIT, LIMIT)
    return torch.sigmoid_(u.neg_()).add_(FLOOR).clamp_(max=1)


def solve(importance: Tensor, keep: Tensor, beta2: float, real: Tensor) -> Tensor:
    """log beta1 (groups,), for importances (groups, width) and keep ratios (groups,).

    A ratio of 0.01 or less gives the least p there is, one of 1 or more p = 1.
    """
    values = (importance + EPSILON).log()
    counts = real.sum(1)
    reach = LIMIT / beta2
    low = values.masked_fill(~real, torch.inf).amin(1).sub_(reach)
    high = values.masked_fill(~real, -torch.inf).amax(1).add_(reach)
    wanted = (keep * counts)[:, None]
    places = torch.linspace(0, 1, CANDIDATES + 2, device=values.device, dtype=values.dtype)
    weight = real.to(values.dtype)
    for _ in range(STEPS):
        ends = torch.lerp(low[:, None], high[:, None], places)
        inner = ends[:, 1:-1, None]
        sums = torch.einsum("gkw,gw->gk", probabilities(values[:, None], inner, beta2), weight)
        enough = (sums >= wanted).sum(1, keepdim=True)  # sums fall from end to end
        low, high = ends.gather(1, enough).squeeze(1), ends.gather(1, enough + 1).squeeze(1)
    return (low + high) / 2


def slopes(importance: Tensor, log_beta1: Tensor, beta2: float, real: Tensor) -> Tensor:
    """d p_i / d keep ratio (groups, width): C s_i / sum(s), s = q (1 - q), q the bare sigmoid; 0 for padding."""
    u = ((importance + EPSILON).log() - log_beta1[:, None]) * beta2
    s = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
    s = s.masked_fill_(~real, -torch.inf)
    s = (s - s.amax(1, keepdim=True)).clamp_(min=-DEPTH).exp_().mul_(real)
    return s * (real.sum(1, keepdim=True) / s.sum(1, keepdim=True))


class KeepProbability(torch.autograd.Function):
    """(keep (groups,), importance (groups, width), beta2, real) -> p (groups, width), 0 for padding; the gradient goes to
    `keep` alone."""

    @staticmethod
    def forward(ctx, keep: Tensor, importance: Tensor, beta2: float, real: Tensor) -> Tensor:
        log_beta1 = solve(importance, keep, beta2, real)
        ctx.save_for_backward(importance, log_beta1, real)
        ctx.beta2 = beta2
        return probabilities((importance + EPSILON).log(), log_beta1[:, None], beta2).mul_(real)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        importance, log_beta1, real = ctx.saved_tensors
        return (grad * slopes(importance, log_beta1, ctx.beta2, real)).sum(1), None, None, None

