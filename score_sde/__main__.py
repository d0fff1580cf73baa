"""The command line, of `launch.py`, `python -m score_sde` and the installed command: flags in, one mode out."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from score_sde.errors import UserError, cut, did_you_mean, escape, lookup
from score_sde.experiment import Experiment, make_experiment, modes
from score_sde.experiment.flags import naming_flags
from score_sde.experiment.overrides import load, override, parse
from score_sde.experiment.paths import expand, split_variant
from score_sde.models.pretrained import OVERRIDABLE
from score_sde.planning.topology import silence
from score_sde.runtime import distributed
from score_sde.runtime.cache import cache_folder
from score_sde.runtime.repeatable import exclude_nondeterministic_ops
from score_sde.training.interrupt import STOPPED, ending_at_ctrl_c, guard_output
from score_sde.training.workdir import check_config, check_files, flatten, read_config

LOCAL = ("--config.data.path", "--config.data.num_threads", "--config.data.num_workers")  # may differ between hosts
LONGEST = 255  # bytes of a file's or folder's name
CONFIGS = Path(__file__).parents[1] / "configs"  # of a clone; an installed package has none
FIRST = "configs/demo.py"
GROUPS = {"digits": "digits", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "imagenet64": "ImageNet 64x64"}
HELP = """\
usage: python launch.py --config=FILE [--mode=MODE] [--workdir=DIR] [--config.<group>.<key>=VALUE ...]

  --config=configs/demo.py         the experiment; docs/configuration.md lists its keys
  --config.sampling.num_steps=50   another value of one key
  --workdir=DIR                    folder of the run, by default runs/<name of the config>

modes
  train       train, or resume from the newest checkpoint (the default)
  sample      draw samples and plot them
  evaluate    compute FID and other metrics of samples
  likelihood  compute bits/dim of the test data
  certify     compare solvers on the trained network
  export      write the weights to one file
  plan        estimate memory and time of a train step: --topology=v5e:4x4 or cpu:8 [--search] [--json]
  sweep       run an ablation on Ray: [--dry_run] [--report_only] [--address=HOST:PORT]

several processes
  --coordinator=HOST:PORT --num_processes=N --process_id=I   started by hand; I is 0, ..., N - 1
  --cluster                                                  started by a cluster that JAX knows, as TPU pods

--helpfull lists the flags of the libraries as well."""

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "mode",
    "train",
    "train (resumes if the folder has a checkpoint) | sample | evaluate | likelihood | certify | export | plan | sweep",
)
flags.DEFINE_string("workdir", None, "folder of the run; default runs/<config name>")
flags.DEFINE_string("coordinator", "", "host:port of process 0, where several are started by hand")
flags.DEFINE_integer("num_processes", 0, "number of processes that run this command; 0: one, or those of the cluster")
flags.DEFINE_integer("process_id", -1, "index of this process, from 0")
flags.DEFINE_bool("cluster", False, "join the processes that JAX finds by itself, as on TPU pods")
flags.DEFINE_string("topology", "", "of plan: a TPU slice, v5e:4x4 (v4, v5e, v5p, v6e), or cpu:8")
flags.DEFINE_bool("search", False, "of plan: search for the largest batch per device, by several compilations")
flags.DEFINE_bool("json", False, "of plan: print JSON")
flags.DEFINE_bool("dry_run", False, "of sweep: list the trials and their cost, and run nothing")
flags.DEFINE_bool("report_only", False, "of sweep: write the report of the trials so far, also while others run")
flags.DEFINE_string("address", "", "of sweep: host:port of a Ray cluster; without it one is started on this machine")
flags.DEFINE_string("config", None, "a file in configs/; --config.<group>.<key>=<value> overrides it")


def plan(experiment: Experiment, workdir: Path) -> str:
    """Estimate memory, FLOPs and communication of a train step on a TPU slice."""
    from score_sde.planning.plan import as_json, plan, text

    del workdir  # nothing is written
    figures = plan(experiment, FLAGS.topology, FLAGS.search)
    return as_json(figures) if FLAGS.json else text(figures)


MODES = modes.MODES | {"plan": plan}


def sweep(workdir: Path) -> str:
    """Run an ablation on Ray, or list or report its trials."""
    from score_sde.sweeps.sweep import run_sweep

    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray ends its programs at a Ctrl-C
    jax.config.update("jax_platforms", "cpu")  # the trials' devices are theirs
    return run_sweep(FLAGS.config, workdir, FLAGS.address, FLAGS.dry_run, FLAGS.report_only)


def keep_compiled_programs() -> None:
    """Keep compiled programs on disk for the next start; JAX_COMPILATION_CACHE_DIR chooses another folder."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def hide_raised_errors() -> None:
    """Keep tracebacks of Orbax out of the log, which it prints in addition to the error of a save that it raises."""
    logging.get_absl_logger().addFilter(lambda record: not record.exc_info)

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # what TensorStore had left to do after the error
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


def compile_here(topology: str) -> None:
    """Compile on the CPU for `plan`, even if libtpu looks for a TPU, with the virtual devices of a topology cpu:n."""
    jax.config.update("jax_platforms", "cpu")
    virtual = re.fullmatch(r"cpu:(\d+)", topology)
    if virtual and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", int(virtual.group(1)))


def main(argv: list[str]) -> None:
    """Run the mode of the command line."""
    logging.set_verbosity(logging.ERROR)  # libraries report their normal work as INFO and WARNING
    hide_raised_errors()
    keep_compiled_programs()
    exclude_nondeterministic_ops()
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: values are given as --flag=value")
    if FLAGS.config is None:
        raise UserError(_which_experiment())
    run = lookup("mode", MODES | {"sweep": None}, FLAGS.mode, "--mode")
    if FLAGS.mode == "plan":
        compile_here(FLAGS.topology)
    workdir = Path(FLAGS.workdir)
    _check_name(workdir)
    if FLAGS.mode == "sweep":
        with naming_flags(FLAGS.config, **{key: key for key in FLAGS.config}):
            print(sweep(workdir))
        return
    if "trials" in FLAGS.config:
        raise UserError("--config is a sweep, which requires --mode=sweep")
    with ending_at_ctrl_c():
        _run(run, workdir)


def _check_name(workdir: Path) -> None:
    """Raise UserError if a path has a name that no disk takes."""
    longest = max((len(os.fsencode(part)) for part in workdir.absolute().parts), default=0)
    if longest > LONGEST or "\0" in str(workdir):
        raise UserError(
            f"workdir: expected names of at most {LONGEST} bytes without zeros, got one of {longest} (set --workdir)"
        )


def _run(run: Callable[[Experiment, Path], str], workdir: Path) -> None:
    """Run a mode on the experiment of --config and print its text."""
    with naming_flags(FLAGS.config):
        distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.cluster)
    with_folder = FLAGS.mode != "plan"  # plan neither reads the folder nor writes to it
    saved = read_config(workdir) if with_folder else {}
    experiment = make_experiment(FLAGS.config, _local_devices(), saved)
    if with_folder:
        with naming_flags(FLAGS.config), distributed.exit_together():
            compared = {"--mode": FLAGS.mode} | {f"--config.{key}": value for key, value in flatten(experiment.config)}
            distributed.check_equal({key: compared[key] for key in compared if key not in LOCAL}, "flags")
            check_config(workdir, experiment.config)
            check_files(workdir)
    with distributed.exit_together():
        text = modes.run_mode(run, FLAGS.mode, experiment, workdir)
    if distributed.is_main_process():
        print(escape(text))


def _local_devices() -> list[jax.Device]:
    """Return this process's devices.

    Raises:
      UserError: if there are none of the platforms in JAX_PLATFORMS.
    """
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that it finds a GPU
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", None)
        with silence():
            found = ", ".join(sorted({device.platform for device in jax.local_devices()}))
        reason = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0]
        raise UserError(
            f"devices: expected a platform of JAX_PLATFORMS={asked}, got only {found} on this machine"
            f"{reason and ': '}{reason.rstrip('.')}. Unset JAX_PLATFORMS, or install JAX for that platform"
        ) from None


def parse_flags(argv: list[str]) -> list[str]:
    """Parse flags, overrides of the config included; errors come as one sentence."""
    if {"--help", "-help", "-h"} & {*argv}:
        print(HELP)
        sys.exit(0)
    try:
        argv, given = _split_overrides(argv[:1] + FLAGS.read_flags_from_files(argv[1:], force_gnu=False))
        rest = FLAGS(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if FLAGS.config is None:
        return rest  # main reports the missing flag
    path, variant = split_variant(FLAGS.config)
    if not os.path.isfile(path):
        known = _config_files()
        there_are = f" There are {', '.join(known)}." if known else ""
        raise UserError(f"no config file {path!r}.{did_you_mean(path, known)}{there_are}")
    name = "_".join(filter(None, (Path(path).stem, variant)))
    FLAGS["workdir"].value = expand(FLAGS.workdir or os.path.join("runs", name))
    config = load(FLAGS.config)
    values = {key: parse(config, key, texts) for key, texts in given.items()}
    FLAGS["config"].value = config = override(config, values)
    if "model" in config:  # not a sweep
        _check_decided([key for key, _ in flatten(values)])
    return rest


def _check_decided(given: list[str]) -> None:
    """Raise UserError if a flag has no effect, because pretrained weights fix the process and the network."""
    free = [f"model.kwargs.{key}" for key in OVERRIDABLE] + ["model.pretrained", "model.family"]
    refused = [name for name in given if name.split(".")[0] in ("sde", "model") and name not in free]
    if FLAGS.config.model.pretrained and refused:
        raise UserError(
            f"decided by the weights in --config.model.pretrained: {', '.join(refused)} (of these groups only "
            f"{', '.join(free)} can be given)"
        )


def _split_overrides(argv: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split the flags --config.<key>=<value> from the command line, as the texts of each key."""
    rest: list[str] = []
    given: dict[str, list[str]] = {}
    words = [*argv]
    while words:
        match = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", word := words.pop(0), re.DOTALL)
        if match is None:
            rest.append(word)
            continue
        negated, key, text = match.groups()
        if text is None:  # of a boolean, or in the next word
            alone = negated or not words or re.match("--?[a-z]", words[0])
            text = str(not negated) if alone else words.pop(0)
        given[key] = [*given.pop(key, []), text]
    return rest, given


def _config_files() -> list[str]:
    files = (path for path in CONFIGS.rglob("*.py") if not path.name.startswith(("__", "common")))
    return sorted(str(path.relative_to(CONFIGS.parent)) for path in files)


def _which_experiment() -> str:
    """Return what to do where no config is given: the first one to try, and all by their data."""
    groups: dict[str, list[str]] = {}
    for file in _config_files():
        path = Path(file)
        data = next((shown for name, shown in GROUPS.items() if name in path.stem), "others")
        group = "sweeps, for --mode=sweep" if path.parent.name == "sweeps" else data
        groups.setdefault(group, []).append(str(path.relative_to("configs")))
    if not groups:
        return (
            "which experiment? Give --config=FILE, a Python file with a function get_config(); --help shows the modes"
        )
    order = [*GROUPS.values(), "others", "sweeps, for --mode=sweep"]
    lines = [f"  {group}: {', '.join(groups[group])}" for group in order if group in groups]
    return "\n".join([f"which experiment? Begin with --config={FIRST}; --help shows the modes. In configs/:", *lines])


def _too_long(path: str) -> str:
    """Return a sentence on a path with a name that no disk takes, and the key of the config that it comes from."""
    name = max(path.split("/"), key=len)
    config = FLAGS["config"].value
    values = flatten(config.to_dict()) if isinstance(config, ConfigDict) else ()
    place = next((f" (set --config.{key})" for key, value in values if name in str(value)), "")
    return f"expected names of files of at most {LONGEST} bytes, got {cut(name)!r}{place}"


def run() -> None:
    """Run the program; a `UserError` is printed as one sentence, with the exit status 2."""
    guard_output()
    if os.getcwd() not in sys.path:  # of the installed command: a config may import its neighbors
        sys.path.insert(0, os.getcwd())
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(f"launch.py: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            print(f"launch.py: {_too_long(str(error.filename))}", file=sys.stderr)
            sys.exit(2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        advice = "earlier checkpoints are intact, free some space and resume"
        print(f"launch.py: the disk is full: {error}; {advice}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
