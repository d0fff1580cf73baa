"""A plan agrees with a run: memory, collectives, FLOPs."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mixture, toy2d
from score_sde.errors import UserError
from score_sde.experiment import make_experiment
from score_sde.planning import plan
from score_sde.planning.collectives import collectives
from score_sde.planning.flops import count_repeated_flops
from score_sde.planning.topology import CHIPS, hide_host_flags, parse_topology
from score_sde.training.devices import make_strategy
from score_sde.training.setup import build_train_step
from tests.cli import POINTS, ROOT, environment, finish, start

NUMBER = 8


def experiment_of(strategy="pmap"):
    config = toy2d.get_config()
    config.model.kwargs = {"features": (64, 64)}
    config.training.batch_size = 16
    config.training.strategy = strategy
    return make_experiment(config, jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_plan_for_virtual_devices_agrees_with_a_run(strategy):
    """Arguments and collectives per device, compared with the arrays and the compiled program of a run."""
    experiment = experiment_of(strategy)
    estimate = plan.plan(experiment, f"cpu:{NUMBER}")
    parallel = make_strategy(strategy, jax.devices()[:NUMBER])
    state = experiment.training.init_state()
    placed = parallel.shard_state(state)
    image = np.zeros((1, 16, 2), np.float32)
    number = np.zeros((1, 16), np.int32)
    batch = parallel.shard_batch({"image": image, "label": number, "index": number})
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((placed, batch)))
    assert abs(estimate["argument_bytes"] / held - 1) < 0.1
    run_steps = parallel.compile(
        build_train_step(experiment.training, None, parallel.axis_name, parallel.all_gather_params), state
    )
    state, _ = run_steps(placed, batch)  # the planned program runs
    if strategy == "pmap":
        assert 0.9 < estimate["collective_bytes"]["all-reduce"] / estimate["gradient_bytes"] < 1.1
    assert estimate["batch_per_device"] == 2 and estimate["fits"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_temporaries_agree_with_the_memory_of_a_first_run(strategy):
    """Eight virtual devices in a separate process agree within 10%, because its threads need some memory too."""
    command = [sys.executable, "-m", "tests.plan_memory", strategy]
    done = subprocess.run(command, cwd=ROOT, env=environment(8), capture_output=True, text=True, timeout=600)
    memory = json.loads(done.stdout.strip().splitlines()[-1])
    assert abs(memory["measured"] / memory["planned"] - 1) < 0.1


@pytest.mark.slow
def test_fsdp_does_not_copy_the_batch():
    """fsdp gathers parameters, not activations: its temporaries exceed those of pmap by at most the parameters."""
    config = toy2d.get_config()
    config.model.kwargs = {"features": (256, 256, 256)}
    config.training.batch_size = 8 * 1024
    estimates = {}
    for strategy in ("pmap", "fsdp"):
        config.training.strategy = strategy
        estimates[strategy] = plan.plan(make_experiment(config, jax.devices()[:1]), f"cpu:{NUMBER}")
    spare = 2 * estimates["pmap"]["gradient_bytes"]  # the gathered parameters and their gradient
    assert estimates["fsdp"]["temporary_bytes"] < 1.1 * estimates["pmap"]["temporary_bytes"] + spare


def test_loops_count_once_per_iteration():
    matrix = jnp.ones((4, 4))

    def looped(x):
        return jax.lax.scan(lambda x, _: (x @ matrix, None), x, None, length=5)[0] @ matrix

    product = 2 * 4**3
    assert count_repeated_flops(looped, matrix) == count_repeated_flops(jax.jit(looped), matrix) == 4 * product
    assert count_repeated_flops(lambda x: x @ x, matrix) == 0


@pytest.mark.slow
def test_accumulation_counts_the_whole_batch():
    def factor(accumulate):
        config = toy2d.get_config()
        config.training.grad_accum_steps = accumulate
        experiment = make_experiment(config, jax.devices()[:1])
        return plan.compile_step(experiment, parse_topology("cpu:1"), 512).flops

    assert abs(factor(4) / factor(1) - 1) < 0.05


def test_collectives_are_parsed_from_hlo():
    program = """HloModule jit_step, is_scheduled=true

%inside.1 (p: f32[2,3]) -> f32[2,3] {
  ROOT %again = f32[2,3]{1,0} all-reduce(%p), channel_id=2
}

%body.2 (arg: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %there = f32[2,3]{1,0} fusion(%arg), kind=kCustom, calls=%inside.1
  %sent = (f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(%arg)
}

ENTRY %main.3 (a: f32[4]) -> f32[8] {
  %psum.1 = (f32[256,256]{1,0:T(8,128)}, f32[3]{0}) all-reduce(%a, %b), channel_id=1, replica_groups={{0,1}}
  %gather.2 = bf16[8,16]{1,0} all-gather(%c), dimensions={0}
  %start = ((f32[4]{0}), (f32[8]{0})) all-gather-start(%d), dimensions={0}
  %other = (f32[4]{0}, f32[16]{0:T(128)}) all-gather-start(%d), dimensions={0}
  %done = f32[8]{0} all-gather-done(%start)
  %loop = (s32[], f32[2,3]) while(%t), condition=%c, body=%body.2, backend_config={"known_trip_count":{"n":"7"}}
}
"""
    assert collectives(program) == {
        "all-reduce": 4 * (256 * 256 + 3) + 7 * 4 * 6,
        "all-gather": 2 * 128 + 4 * 8 + 4 * 16,
        "collective-permute": 7 * 4 * 5,
    }


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("", "expected a chip and a shape"),
        ("v5e", "expected a chip and a shape"),
        ("v5f:2x2", "Did you mean 'v5p'|Did you mean 'v5e'"),
        ("v4:2x2", "v4 slices have 3 dimensions, as in v4:2x2x2"),
        ("v5e:4x5", "expected even sizes in the first two dimensions.*set topology=v5e:4x6"),
        ("v4:3x4x1", "set topology=v4:4x4x1"),
        ("cpu:4096", "JAX has only 8 CPU devices here"),
        ("cpu:0", "has no devices"),
        ("cpu:7", "16 doesn't divide among 7 devices"),
    ],
)
def test_invalid_topologies_raise(topology, words):
    with pytest.raises(UserError, match=words):
        plan.plan(experiment_of(), topology)


def test_analytic_network_has_nothing_to_plan():
    with pytest.raises(UserError, match="nothing to plan"):
        plan.plan(make_experiment(mixture.get_config(), jax.devices()[:1]), "cpu:8")


@pytest.mark.slow
def test_plan_command_prints_and_writes_nothing(tmp_path):
    printed = finish(start(tmp_path / "run", *POINTS, "--mode=plan", "--topology=cpu:4", devices=4))
    assert "cpu:4: 4 devices, pmap; " in printed and " parameters; batch 8, 2 per device" in printed
    assert "collectives per step: all-reduce" in printed
    assert not (tmp_path / "run").exists()
    estimate = json.loads(
        finish(start(tmp_path / "run", *POINTS, "--mode=plan", "--topology=cpu:4", "--json", devices=4))
    )
    assert estimate["devices"] == 4


def test_largest_batch_is_searched_only_on_request(monkeypatch):
    chip = CHIPS["v5e"]._replace(memory=2**22)
    monkeypatch.setattr(plan, "parse_topology", lambda topology: parse_topology(topology)._replace(chip=chip))
    calls = []

    def compile_step(experiment, target, batch_per_device):
        calls.append(batch_per_device)
        return plan.Compiled(0.0, 2.0**18 * batch_per_device, 0.0, 0.0, 1.0, 1.0, {})

    monkeypatch.setattr(plan, "compile_step", compile_step)
    estimate = plan.plan(experiment_of(), "cpu:4")
    assert calls == [4] and "largest_batch_per_device" not in estimate
    estimate = plan.plan(experiment_of(), "cpu:4", search=True)
    assert estimate["largest_batch_per_device"]["fits"] == 15 and len(calls) > 2  # 16 would exceed 0.97 of the memory


def test_long_stage_prints_its_seconds(capsys):
    with plan._log_stage("compiling", interval=0.01):
        time.sleep(0.1)
    assert "plan: compiling, 0 s\n" in capsys.readouterr().err


def test_bounds_follow_from_the_peak_rates():
    chip = CHIPS["v5e"]
    compiled = plan.Compiled(1.0, 2.0, 0.0, 0.0, 3 * chip.flops, 2 * chip.bandwidth, {"all-reduce": chip.interconnect})
    target = parse_topology("cpu:4")._replace(chip=chip)
    estimate = plan._step_estimate(compiled, target, experiment_of())
    assert estimate["bounds_seconds"] == {"compute": 3.0, "memory": 2.0, "interconnect": 1.5}
    assert estimate["bound_by"] == "compute" and estimate["images_per_second_at_most"] == 16 / 3


def test_flags_of_this_machine_are_hidden_from_libtpu(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_unknown_to_libtpu")
    cpu = parse_topology("cpu:1")
    with hide_host_flags(cpu):
        assert os.environ["XLA_FLAGS"] == "--xla_unknown_to_libtpu"
    with pytest.raises(KeyError), hide_host_flags(cpu._replace(chip=CHIPS["v5e"])):
        os.environ["XLA_FLAGS"]
    assert os.environ["XLA_FLAGS"] == "--xla_unknown_to_libtpu"
