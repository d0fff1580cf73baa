"""GPU programs that repeat their bits."""

import os

FLAG = "xla_gpu_exclude_nondeterministic_ops"


def exclude_nondeterministic_ops() -> None:
    """Have XLA compile GPU programs without operations whose order of summation varies, before JAX finds its devices.

    Without this, two runs of the same compiled train step differ in their last bits on a GPU, because the gradients of
    convolutions are summed in any order. CPUs and TPUs ignore it. A value of this flag in XLA_FLAGS is kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG not in flags and "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{FLAG}=true".strip()
