"""Pruned nets made smaller: fewer rows and input channels, cut kernels, the same outputs, in files that Caffe loads.

    matrices   weights as rows by inputs       constants  which channels have one value everywhere
    keep       which channels stay             crop       kernels cut to a rectangle
    plan       what becomes of every layer     rewrite    the plan in a prototxt
    check      that outputs are the same       latency    how long a forward pass takes
    command    `increg slim`

What is left scattered, columns that are zero in a channel that is not, no Caffe layer can skip: see `gathered`.
"""

from .check import check_same, slim
from .plan import Plan, plan

__all__ = ["Plan", "check_same", "plan", "slim"]
