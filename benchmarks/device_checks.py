"""Check the results of JAX's default device against the host's CPU.

    python benchmarks/device_checks.py [--check=random_bits,conversions,solvers,likelihood,networks,gradients,training]
        [--networks=ddpmpp,dit]

* Conversions and solvers: the error in float32 against float64 on the CPU is at most 8 times that of float32 on the
  CPU, plus ten roundings.
* Networks and gradients: the relative distance to float32 on the CPU is at most 4 sqrt(layers) roundings of the
  products, twice that for gradients. The products are computed at the highest precision, at the default precision
  (TF32 with 10 bits on some devices), and in bfloat16 (7 bits).
* Training repeats its bits, also after a restored checkpoint. On several devices, pmap and fsdp agree with one device.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.report import emit, load_config, show
from score_sde.analytic import gaussian_denoiser
from score_sde.experiment import make_experiment
from score_sde.likelihood import log_likelihood
from score_sde.models import create
from score_sde.models.constraints import KERNELS
from score_sde.parameterization import PREDICTIONS, Prediction, convert, from_prediction, make_denoiser
from score_sde.sde import SDES, add_noise, t_from_log_snr
from score_sde.solvers import SOLVERS, solve, time_grid
from score_sde.training import checkpoints
from score_sde.training.devices import make_strategy
from score_sde.training.setup import build_train_step
from score_sde.training.step import scan_steps

UNET = {"channels": 32, "multipliers": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,)}
NETWORKS = {
    "ddpmpp": UNET,
    "ncsnpp": UNET,
    "adm": UNET | {"head_channels": 16, "groups": 8},
    "edm2": UNET | {"head_channels": 16},
    "dit": {"width": 64, "depth": 4, "heads": 4},
    "ncsnv2": {"channels": 32},
}
ROUNDING = {"highest": 2.0**-24, "default": 2.0**-11, "bfloat16": 2.0**-8}  # of products, the default's as TF32
OTHERS = (
    "langevin",
    "annealed_langevin",
    "predictor_corrector",
    "flow_map_steps",
)  # which take other noise, or a flow map
SOME = ("heun", "ddim", "dpm_solver_pp", "ancestral")  # one solver of each kind

CHECKS = ("random_bits", "conversions", "solvers", "likelihood", "networks", "gradients", "training")

FLAGS = flags.FLAGS
flags.DEFINE_list("check", list(CHECKS), f"of {', '.join(CHECKS)}")
flags.DEFINE_list("networks", list(NETWORKS), f"of {', '.join(NETWORKS)}")


def main(argv):
    del argv
    rows = []
    for check in FLAGS.check:
        try:
            for name, error, limit in globals()[check]():
                rows.append({"check": name, "error": error, "limit": limit, "passed": bool(error <= limit)})
                emit(rows[-1])
        except Exception as error:  # is reported, and the other checks go on
            rows.append({"check": check, "passed": False, "note": f"{type(error).__name__}: {error}"[:300]})
            emit(rows[-1])
    columns = ("check", "error", "limit", "passed", "note")
    show("Correctness", [{column: row.get(column) for column in columns} for row in rows])
    failed = [row["check"] for row in rows if not row["passed"]]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def host():
    return jax.local_devices(backend="cpu")[0]


def on_cpu(function, *arguments):
    """Return the result of a jitted function on the host's CPU."""
    with jax.default_device(host()):
        return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


def in_float64(function, *arguments):
    with jax.enable_x64(True):
        return on_cpu(function, *jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), arguments))


def here(function, *arguments):
    return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


def distance(actual, expected):
    """Return |actual - expected| / |expected| over all arrays of a tree; infinity if a number is not finite."""
    differences = jax.tree.map(lambda a, b: np.sum((np.float64(a) - b) ** 2), actual, expected)
    norm = sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(expected))
    error = np.sqrt(sum(jax.tree.leaves(differences)) / norm)
    return float(error) if np.isfinite(error) else float("inf")


def as_exact_as_the_cpu(function, *arguments):
    """Check each entry of the dictionary that a function returns; one program computes them all."""
    truth, usual, found = (compute(function, *arguments) for compute in (in_float64, on_cpu, here))
    for name in truth:
        limit = 8 * distance(usual[name], truth[name]) + 10 * 2.0**-24
        yield name, distance(found[name], truth[name]), limit


def random_bits():
    """Check that Threefry gives the same bits."""
    bits = partial(jax.random.bits, shape=(1000,))
    key = jax.random.key(3)
    yield "random bits", different(here(bits, key), on_cpu(bits, jax.device_put(key, host()))), 0.0


def conversions():
    """Check the conversions of every prediction to every other, at log-SNRs from -6 to 6."""
    rng = np.random.default_rng(0)
    x0, epsilon = rng.normal(size=(2, 64, 5)).astype(np.float32)
    levels = np.linspace(-6, 6, 64, dtype=np.float32)
    for name, make_sde in SDES.items():
        sde = make_sde()
        t = np.asarray(t_from_log_snr(sde, levels))

        def every(x0, epsilon, t, sde=sde, name=name):
            x = add_noise(sde, x0, epsilon, t)
            found = []
            for source in PREDICTIONS:
                output = from_prediction(Prediction(x0, epsilon), t, sde, source)
                found += [convert(output, x, t, sde, source, target) for target in PREDICTIONS]
            return {f"conversions, {name}": found}

        yield from as_exact_as_the_cpu(every, x0, epsilon, t)


def solvers():
    """Check twenty steps on Gaussian data with given noise: every solver with vp, and some with other SDEs."""
    rng = np.random.default_rng(1)
    steps = 20
    for sde_name in ("vp", "edm", "flow"):
        sde = SDES[sde_name]()
        times = np.asarray(time_grid(sde, steps), np.float32)
        denoiser = gaussian_denoiser(sde, 0.4, 0.6)
        x = (rng.normal(size=(64, 3)) * np.asarray(sde.sigma(sde.t_max))).astype(np.float32)
        noise = rng.normal(size=(steps, 64, 3)).astype(np.float32)
        names = [name for name in SOLVERS if name not in OTHERS] if sde_name == "vp" else SOME
        chosen = {f"{name}, {sde_name}": SOLVERS[name]() for name in names}

        def run(x, noise, chosen=chosen, sde=sde, times=times, denoiser=denoiser):
            def end(solver):
                return solve(solver, sde, denoiser, x, times, noise=noise if solver.stochastic else None).x

            return {name: end(solver) for name, solver in chosen.items()}

        yield from as_exact_as_the_cpu(run, x, noise)


def likelihood():
    """Check the log-density of Gaussian data, to ten times the solver's rtol."""
    sde = SDES["vp"]()
    denoiser = gaussian_denoiser(sde, 0.4, 0.6)
    x = np.random.default_rng(2).normal(0.4, 0.6, size=(16, 3)).astype(np.float32)

    def log_prob(x):
        return log_likelihood(sde, denoiser, x, divergence="exact").log_prob

    yield "log-likelihood", distance(here(log_prob, x), in_float64(log_prob, x)), 1e-4


def networks():
    """Check the output of every network with random weights on images of 16 x 16 x 3."""
    x = np.random.default_rng(3).normal(size=(4, 16, 16, 3)).astype(np.float32)
    level = np.linspace(-1, 1, 4, dtype=np.float32)
    for name in FLAGS.networks:
        kwargs = NETWORKS[name]
        module = create(name, **kwargs)
        variables = random_variables(module, x, level)
        expected = on_cpu(module.apply, variables, x, level)
        for precision, limit in limits(variables).items():
            actual = applied(name, kwargs, precision, variables, x, level)
            yield f"{name}, {precision}", distance(actual, expected), limit


def limits(variables):
    """Return the limit of each precision, from the number of kernels; an array of scanned blocks has one per block."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    kernels = [leaf for path, leaf in leaves if path[-1].key in KERNELS]
    layers = sum(leaf.shape[0] if leaf.ndim % 2 else 1 for leaf in kernels)
    return {precision: 4 * np.sqrt(layers) * rounding for precision, rounding in ROUNDING.items()}


def applied(name, kwargs, precision, variables, x, level):
    module = create(name, **kwargs | ({"dtype": "bfloat16"} if precision == "bfloat16" else {}))
    with jax.default_matmul_precision("highest" if precision == "highest" else "default"):
        return here(module.apply, variables, x, level)


def random_variables(module, x, level):
    rng = np.random.default_rng(4)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key in ("scale", "gamma") else 0.0
        fan = np.prod(leaf.shape[leaf.ndim % 2 : -1]) if path[-1].key in KERNELS else 25.0
        return (mean + rng.normal(size=leaf.shape) / np.sqrt(fan)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), x, level))


def gradients():
    """Check the gradient of the denoising loss of two networks."""
    rng = np.random.default_rng(5)
    x0, epsilon = rng.normal(size=(2, 4, 16, 16, 3)).astype(np.float32)
    t = np.linspace(0.1, 0.9, 4, dtype=np.float32)
    sde = SDES["vp"]()
    for name in (name for name in ("ddpmpp", "dit") if name in FLAGS.networks):
        kwargs = NETWORKS[name]
        variables = random_variables(create(name, **kwargs), x0, t)

        def gradient(variables, module):
            def loss(variables):
                denoiser = make_denoiser(lambda x, level: module.apply(variables, x, level), sde)
                return jnp.mean((denoiser(add_noise(sde, x0, epsilon, t), t).epsilon - epsilon) ** 2)

            return jax.grad(loss)(variables)

        expected = on_cpu(partial(gradient, module=create(name, **kwargs)), variables)
        for precision, limit in limits(variables).items():
            module = create(name, **kwargs | ({"dtype": "bfloat16"} if precision == "bfloat16" else {}))
            with jax.default_matmul_precision("highest" if precision == "highest" else "default"):
                actual = here(partial(gradient, module=module), variables)
            yield f"gradient of {name}, {precision}", distance(actual, expected), 2 * limit


def training():
    """Check four train steps: repeated, with a checkpoint restored after two, and on several devices."""
    config = load_config("digits", batch_size=16 * len(jax.local_devices()))
    config.model.kwargs.channels = 16
    setup = make_experiment(config, jax.local_devices()).training
    images = np.random.default_rng(6).integers(0, 17, (4, setup.batch_size, 8, 8, 1), np.uint8)
    run = jax.jit(partial(scan_steps, build_train_step(setup, 17, axis_name=None)))

    def steps(state, first, last):
        return jax.tree.map(np.asarray, run(state, {"image": images[first:last]})[0])

    whole = steps(setup.init_state(), 0, 4)
    yield "training repeats its bits", different(steps(setup.init_state(), 0, 4), whole), 0.0
    with tempfile.TemporaryDirectory() as folder:
        manager = checkpoints.make_manager(Path(folder) / "checkpoints", keep=1)
        with checkpoints.closing(manager):
            checkpoints.save(manager, jax.tree.map(jnp.asarray, steps(setup.init_state(), 0, 2)))
            checkpoints.finish(manager)
            resumed = checkpoints.restore(manager, jax.eval_shape(setup.init_state))
        yield "a resumed run repeats its bits", different(steps(resumed, 2, 4), whole), 0.0
    if len(jax.local_devices()) > 1:
        # Adam's steps have the size of the learning rate, whose warm-up reaches 4 / 200 of 1e-3. The sign of a gradient
        # that is rounding error may differ, so parameters differ by at most twice the sum of these steps.
        size = np.sqrt(np.mean(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(whole.params)]) ** 2))
        limit = float(2 * 1e-3 * (1 + 2 + 3 + 4) / 200 / size)
        for name in ("pmap", "fsdp"):
            strategy = make_strategy(name, jax.local_devices())
            step = build_train_step(setup, 17, strategy.axis_name, strategy.all_gather_params)
            state = setup.init_state()
            compiled = strategy.compile(step, state)
            found, _ = compiled(strategy.shard_state(state), strategy.shard_batch({"image": images}))
            error = distance(jax.tree.map(np.asarray, strategy.unshard(found).params), whole.params)
            yield f"{name} and one device, parameters", error, limit


def different(actual, expected):
    """Return the number of elements that differ."""
    counts = jax.tree.map(lambda a, b: np.sum(np.asarray(a) != np.asarray(b)), actual, expected)
    return float(sum(jax.tree.leaves(counts)))


if __name__ == "__main__":
    app.run(main)
