"""Milliseconds per network evaluation in `solve`, compared with the bare network and with host loops.

    python benchmarks/sampling.py [--model=digits,small,cifar10] [--solver=...] [--num_steps=10] [--batch=0]
        [--dtype=float32|bfloat16] [--peer=torch] [--noadaptive] [--rounds=5] [--nocompile_ratio]

Values are medians over interleaved rounds, without the first call of a turn. The solvers have one evaluation per step.
"over network" is the time in `solve` divided by that of the jitted network. "1000 / 10 steps" is the compile time of
1,000 steps divided by that of 10; `--nocompile_ratio` omits it. "scipy" is SciPy's RK45 around a jitted drift, as in
Song et al., compared with `solve_adaptive` (tsit5) at rtol = atol = 1e-3. "diffusers" is its DDIMScheduler around
the same network in PyTorch, and "torch" is a DDIM loop without a scheduler.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from scipy.integrate import solve_ivp

from benchmarks.report import MODELS, emit, interleaved, load_config, median, show
from score_sde.models import create
from score_sde.parameterization import make_denoiser
from score_sde.sde import probability_flow_epsilon, vp
from score_sde.solvers import SOLVERS, solve, solve_adaptive, time_grid

FLAGS = flags.FLAGS
flags.DEFINE_list("model", ["digits", "small", "cifar10"], f"of {', '.join(MODELS)}")
flags.DEFINE_integer("num_steps", 10, "solver steps, one evaluation each")
flags.DEFINE_integer("rounds", 5, "timed rounds")
flags.DEFINE_list("solver", [], "of those with one evaluation a step; all")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "what the networks compute in")
flags.DEFINE_bool("compile_ratio", True, "also compile 1,000 and 10 steps")
flags.DEFINE_bool("adaptive", True, "also time the adaptive solver beside SciPy's on the host")
flags.DEFINE_integer("batch", 0, "images; 0: each model's own")
flags.DEFINE_enum("peer", "torch", ["torch", "none"], "what to compare with on a CPU, where it is installed")


def ours(config, num_steps: int):
    """Return functions by name that run num_steps evaluations, and each solver's compile seconds and memory."""
    model = create(config.model.name, **config.model.kwargs.to_dict())
    shape = (config.sampling.batch_size, config.data.image_size, config.data.image_size, config.data.channels)
    x, level = jax.random.normal(jax.random.key(0), shape), jnp.full(shape[:1], 500.0)
    params = jax.jit(model.init)(jax.random.key(1), x, level)["params"]
    sde = vp()
    network = jax.jit(lambda params, x: model.apply({"params": params}, x, level))
    runs = {"network": lambda: [jax.block_until_ready(network(params, x)) for _ in range(num_steps)]}
    facts = {}

    def make_denoiser_of(params):
        return make_denoiser(lambda x, level: model.apply({"params": params}, x, level), sde)

    def compiled(make_solver, steps):
        grid = time_grid(sde, steps)

        def sample(params, x, key):
            return solve(make_solver(), sde, make_denoiser_of(params), x, grid, key).x

        started = time.perf_counter()
        program = jax.jit(sample).lower(params, x, jax.random.key(0)).compile()
        return program, time.perf_counter() - started

    for name, make_solver in SOLVERS.items():
        if make_solver().nfe_per_step > 1 or make_solver().jumps or name not in (FLAGS.solver or SOLVERS):
            continue
        program, seconds = compiled(make_solver, num_steps)
        memory = program.memory_analysis()
        facts[name] = {
            "compile s": seconds,
            "memory MiB": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20,
        }
        if FLAGS.compile_ratio:
            long, short = (min(compiled(make_solver, steps)[1] for _ in range(2)) for steps in (1000, 10))
            facts[name]["1000 / 10 steps"] = long / short
        runs[name] = lambda program=program: jax.block_until_ready(program(params, x, jax.random.key(0)))
    return runs, facts, adaptive(sde, make_denoiser_of, params, x)


def adaptive(sde, make_denoiser_of, params, x, tolerance: float = 1e-3):
    """Return the probability flow in a compiled loop and by SciPy around a jitted drift: name -> () -> evaluations."""
    ours = jax.jit(lambda params, x: solve_adaptive(sde, make_denoiser_of(params), x, tolerance, tolerance))

    @jax.jit
    def drift(params, x, t):
        return probability_flow_epsilon(sde, lambda x, t: make_denoiser_of(params)(x, t).epsilon)(x, t)

    def scipy_loop():
        def on_host(t, flat):
            return np.asarray(drift(params, flat.reshape(x.shape).astype(np.float32), np.float32(t))).ravel()

        ends = sde.t_max, sde.t_min
        return solve_ivp(on_host, ends, np.asarray(x).ravel(), rtol=tolerance, atol=tolerance, method="RK45").nfev

    return {
        "solve_adaptive": lambda: float(jax.block_until_ready(ours(params, x)).nfe.max()),
        "scipy": scipy_loop,
    }


def torchs(config, num_steps: int):
    """Return DDIM in PyTorch, a Python loop over the network, with and without a scheduler of diffusers."""
    import diffusers
    import torch

    from benchmarks.torch_ddpmpp import from_config

    network = from_config(config).to(memory_format=torch.channels_last).eval()
    size, channels = config.data.image_size, config.data.channels
    x0 = torch.randn(config.sampling.batch_size, channels, size, size).to(memory_format=torch.channels_last)
    times, sde = time_grid(vp(), num_steps), vp()
    alphas, sigmas = (np.asarray(f(times)).tolist() for f in (sde.alpha, sde.sigma))
    scheduler = diffusers.DDIMScheduler(clip_sample=False)

    @torch.no_grad()
    def with_scheduler():
        x = x0
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.float().expand(len(x))), t, x).prev_sample

    @torch.no_grad()
    def run():
        x = x0
        for n in range(num_steps):
            epsilon = network(x, torch.full((len(x),), 999 * times[n], dtype=torch.float32))
            x = alphas[n + 1] * (x - sigmas[n] * epsilon) / alphas[n] + sigmas[n + 1] * epsilon

    return {"torch": run, "diffusers": with_scheduler}


def main(argv):
    del argv
    with_torch = FLAGS.peer == "torch" and jax.default_backend() == "cpu" and importlib.util.find_spec("torch")
    rows, others = [], []
    for name in FLAGS.model:
        config = load_config(name, dtype=FLAGS.dtype)
        config.sampling.batch_size = FLAGS.batch or config.sampling.batch_size
        runs, facts, loops = ours(config, FLAGS.num_steps)
        if with_torch:
            runs |= torchs(config, FLAGS.num_steps)
        seconds = interleaved(runs, FLAGS.rounds)
        for solver, known in facts.items():
            row = {"model": name, "batch": config.sampling.batch_size, "dtype": FLAGS.dtype, "solver": solver}
            row["ms an evaluation"] = 1e3 * median(seconds[solver]) / FLAGS.num_steps
            row["images/s at these steps"] = config.sampling.batch_size / median(seconds[solver])
            row |= known
            for peer in ("network", "torch", "diffusers"):
                if peer in seconds:
                    ratios = [a / b for a, b in zip(seconds[solver], seconds[peer], strict=True)]
                    row[f"over {peer}"] = median(ratios)
            rows.append(row)
            emit(row)
        if FLAGS.adaptive:
            nfe = {loop: run() for loop, run in loops.items()}
            spent = interleaved(loops, FLAGS.rounds)
            whole = {loop: median(spent[loop]) for loop in loops}
            row = {"model": name, "batch": config.sampling.batch_size}
            for loop in loops:
                row |= {f"{loop} s": whole[loop], f"{loop} NFE": nfe[loop]}
                row[f"{loop} ms an evaluation"] = 1e3 * whole[loop] / nfe[loop]
            others.append(row | {"solve_adaptive over scipy": whole["solve_adaptive"] / whole["scipy"]})
    show(f"Sampling, {FLAGS.dtype}, {FLAGS.num_steps} steps", rows)
    if others:
        show("The probability flow to a tolerance of 1e-3", others)


if __name__ == "__main__":
    app.run(main)
