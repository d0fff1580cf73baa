"""Makes torchvision importable beside a PyTorch for the CPU: import this before it.

Its compiled operators are built for CUDA and don't load there. None of them is used by the networks compared with, but
at its import it describes two, which must have names.
"""

import torch

if not torch.cuda.is_available():
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # kept: what goes out of scope is undefined again
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
