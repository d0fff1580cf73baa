"""The cost of training a flow map: time and memory of a gradient with each rule, over that of denoising.

python benchmarks/flow_map_cost.py [--batch=64] [--rounds=5]

The network is that of the digits, with two times for the rules. Times are medians over interleaved rounds. Memory is
that of the compiled program's temporary buffers.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.report import interleaved, median, show
from configs import flow_map_digits
from score_sde.experiment import make_experiment
from score_sde.randomness import make_example_rngs

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch", 64, "examples")
flags.DEFINE_integer("rounds", 5, "rounds")

RULES = {  # name -> (objective, outputs, arguments)
    "denoising": ("denoising", 1, {}),
    "progressive": ("progressive", 1, {}),
    "eulerian": ("eulerian", 1, {}),
    "eulerian, improved=False": ("eulerian", 1, {"improved": False}),
    "lagrangian": ("lagrangian", 1, {}),
    "progressive, with divergence": ("progressive", 2, {}),
}


def gradient_of(objective, outputs, kwargs):
    """Return the compiled gradient as a function without arguments, and its memory in bytes."""
    config = flow_map_digits.get_config()
    config.model.kwargs.outputs, config.loss.objective, config.loss.objective_kwargs = outputs, objective, kwargs
    if objective == "denoising":
        config.model.kwargs.two_times, config.sampling.solver = False, "ddim"
    experiment = make_experiment(config, jax.local_devices())
    model, loss_fn, batch = experiment.model, experiment.training.loss_fn, FLAGS.batch
    params = model.init(jax.random.key(0))
    rngs = make_example_rngs(jax.random.key(1), 0, jnp.arange(batch), batch)
    x0 = jax.random.normal(jax.random.key(2), (batch, *model.event_shape))
    gradient = jax.jit(jax.grad(lambda params, x0: loss_fn(params, x0, rngs).mean()))
    compiled = gradient.lower(params, x0).compile()
    return lambda: jax.block_until_ready(compiled(params, x0)), compiled.memory_analysis().temp_size_in_bytes


def main(argv):
    del argv
    made = {name: gradient_of(*chosen) for name, chosen in RULES.items()}
    seconds = interleaved({name: run for name, (run, _) in made.items()}, FLAGS.rounds)
    medians = {name: median(values) for name, values in seconds.items()}
    rows = [
        {
            "rule": name,
            "ms": 1e3 * medians[name],
            "over denoising": medians[name] / medians["denoising"],
            "MiB": size / 2**20,
            "memory over denoising": size / made["denoising"][1],
        }
        for name, (_, size) in made.items()
    ]
    show(f"Gradient of a flow map, batch {FLAGS.batch}", rows)


if __name__ == "__main__":
    app.run(main)
