"""Parameters, memory and FLOPs per train step of the papers' configs, as `--mode=plan` estimates them.

python benchmarks/paper_configs.py [--configs=vp_cifar10,ve_cifar10:ncsnpp_deep] [--topology=cpu:1]

Compiles one train step per config, which takes minutes for large networks. Each row is printed as JSON when it is
finished. A TPU topology requires `pip install libtpu`, and cpu:8 requires
XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import importlib

import jax
from absl import app, flags

from benchmarks.report import emit, show
from score_sde.experiment import make_experiment
from score_sde.planning.plan import plan

CONFIGS = (
    "ddpm_cifar10",
    "vp_cifar10:ddpmpp",
    "vp_cifar10:ddpmpp_deep",
    "ve_cifar10:ncsnpp",
    "ve_cifar10:ncsnpp_deep",
    "edm_cifar10:unconditional",
    "flow_map_cifar10",
    "ve_celeba64",
    "adm_imagenet64",
    "edm_imagenet64",
    "ddpm_256:bedroom",
    "ve_256:ffhq",
    "ve_1024",
)
FLAGS = flags.FLAGS
flags.DEFINE_list("configs", list(CONFIGS), "files in configs/, with their variants")
flags.DEFINE_string("topology", "cpu:1", "devices, as for --mode=plan")


def row_of(case):
    """Return the row of a config."""
    name, _, variant = case.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(*([variant] if variant else []))
    estimate = plan(make_experiment(config, jax.devices()[:1]), FLAGS.topology)
    return {
        "config": case,
        "parameters, million": estimate["parameters"] / 1e6,
        "batch": estimate["batch_size"],
        "GiB per device": estimate["memory_bytes"] / 2**30 if "memory_bytes" in estimate else "too large",
        "TFLOP per step": estimate["flops_per_step"] / 1e12 if "flops_per_step" in estimate else None,
    }


def main(argv):
    del argv
    rows = []
    for case in FLAGS.configs:
        rows.append(row_of(case))
        emit(rows[-1])
    show(f"Train steps on {FLAGS.topology}, as estimated by --mode=plan", rows)


if __name__ == "__main__":
    app.run(main)
