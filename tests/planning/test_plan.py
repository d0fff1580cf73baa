"""A plan agrees with what running does: memory, collectives, multiplications."""

import json
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
from score_sde.planning.flops import flops_of_repetitions
from score_sde.planning.topology import CHIPS, find
from score_sde.training.devices import make_layout
from score_sde.training.setup import build_train_step
from tests.cli import POINTS, ROOT, environment, finish, start

NUMBER = 8


def experiment_of(strategy="pmap"):
    config = toy2d.get_config()
    config.model.kwargs = {"features": (64, 64)}
    config.training.batch_size = 16
    config.training.strategy = strategy
    return make_experiment(config, jax.devices()[:1])


@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_a_plan_for_virtual_devices_is_what_running_there_takes(strategy):
    """The state and batch that are there, and the compiled program that runs, a device."""
    experiment = experiment_of(strategy)
    figures = plan.plan(experiment, f"cpu:{NUMBER}")
    layout = make_layout(strategy, jax.devices()[:NUMBER])
    state = experiment.training.init_state()
    placed = layout.place(state)
    image = np.zeros((1, 16, 2), np.float32)
    number = np.zeros((1, 16), np.int32)
    batch = layout.put({"image": image, "label": number, "index": number})
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((placed, batch)))
    assert abs(figures["argument_bytes"] / held - 1) < 0.1
    run_steps = layout.compile(build_train_step(experiment.training, None, layout.axis_name, layout.gather), state)
    state, _ = run_steps(placed, batch)  # what was planned does run
    if strategy == "pmap":
        assert 0.9 < figures["collective_bytes"]["all-reduce"] / figures["gradient_bytes"] < 1.1
    assert figures["batch_a_device"] == 2 and figures["fits"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_temporaries_are_what_a_first_run_adds_to_the_process(strategy):
    """Of eight virtual devices in a process of their own; within 10%, as its threads need some memory, too."""
    command = [sys.executable, "-m", "tests.plan_memory", strategy]
    done = subprocess.run(command, cwd=ROOT, env=environment(8), capture_output=True, text=True, timeout=600)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert abs(figures["measured"] / figures["planned"] - 1) < 0.1


def test_shards_of_the_state_cost_no_copies_of_the_batch():
    """fsdp gathers parameters, not activations: a step's temporaries are pmap's and at most the whole parameters."""
    config = toy2d.get_config()
    config.model.kwargs = {"features": (256, 256, 256)}
    config.training.batch_size = 8 * 1024
    figures = {}
    for strategy in ("pmap", "fsdp"):
        config.training.strategy = strategy
        figures[strategy] = plan.plan(make_experiment(config, jax.devices()[:1]), f"cpu:{NUMBER}")
    spare = 2 * figures["pmap"]["gradient_bytes"]  # the parameters gathered, and their gradient
    assert figures["fsdp"]["temporary_bytes"] < 1.1 * figures["pmap"]["temporary_bytes"] + spare


def test_loops_count_as_often_as_they_run():
    matrix = jnp.ones((4, 4))

    def looped(x):
        return jax.lax.scan(lambda x, _: (x @ matrix, None), x, None, length=5)[0] @ matrix

    product = 2 * 4**3
    assert flops_of_repetitions(looped, matrix) == flops_of_repetitions(jax.jit(looped), matrix) == 4 * product
    assert flops_of_repetitions(lambda x: x @ x, matrix) == 0


def test_accumulation_takes_the_multiplications_of_the_whole_batch():
    def factor(accumulate):
        config = toy2d.get_config()
        config.training.accumulate = accumulate
        experiment = make_experiment(config, jax.devices()[:1])
        return plan.compile_step(experiment, find("cpu:1"), 512).flops

    assert abs(factor(4) / factor(1) - 1) < 0.05


def test_collectives_are_read_from_a_program():
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
        ("", "give a chip and a shape"),
        ("v5e", "give a chip and a shape"),
        ("v5f:2x2", "Did you mean 'v5p'|Did you mean 'v5e'"),
        ("v4:2x2", "v4 slices have 3 dimensions, as in v4:2x2x2"),
        ("cpu:4096", "JAX has 8 CPU devices here"),
        ("cpu:0", "has no devices"),
        ("cpu:7", "16 doesn't divide among 7 devices"),
    ],
)
def test_topologies_that_there_are_not_are_refused(topology, words):
    with pytest.raises(UserError, match=words):
        plan.plan(experiment_of(), topology)


def test_an_exact_network_has_nothing_to_plan():
    with pytest.raises(UserError, match="nothing to plan"):
        plan.plan(make_experiment(mixture.get_config(), jax.devices()[:1]), "cpu:8")


def test_the_command_prints_a_plan_and_writes_nothing(tmp_path):
    printed = finish(start(tmp_path / "run", *POINTS, "--mode=plan", "--topology=cpu:4", devices=4))
    assert "cpu:4: 4 devices, pmap; " in printed and " parameters; batch 8, 2 a device" in printed
    assert "collectives a step: all-reduce" in printed
    assert not (tmp_path / "run").exists()
    figures = json.loads(
        finish(start(tmp_path / "run", *POINTS, "--mode=plan", "--topology=cpu:4", "--json", devices=4))
    )
    assert figures["devices"] == 4


def test_the_largest_batch_is_searched_only_on_request(monkeypatch):
    chip = CHIPS["v5e"]._replace(memory=2**22)
    monkeypatch.setattr(plan, "find", lambda topology: find(topology)._replace(chip=chip))
    calls = []

    def compile_step(experiment, machine, each):
        calls.append(each)
        return plan.Compiled(0.0, 2.0**18 * each, 0.0, 0.0, 1.0, 1.0, {})

    monkeypatch.setattr(plan, "compile_step", compile_step)
    figures = plan.plan(experiment_of(), "cpu:4")
    assert calls == [4] and "largest_batch_a_device" not in figures
    figures = plan.plan(experiment_of(), "cpu:4", search=True)
    assert figures["largest_batch_a_device"]["fits"] == 15 and len(calls) > 2  # 16 take all of it, within 0.97


def test_a_long_stage_is_announced_with_its_seconds(capsys):
    with plan.announced("compiling", interval=0.01):
        time.sleep(0.1)
    assert "plan: compiling, 0 s\n" in capsys.readouterr().err


def test_bounds_follow_from_the_chips_figures():
    chip = CHIPS["v5e"]
    compiled = plan.Compiled(1.0, 2.0, 0.0, 0.0, 3 * chip.flops, 2 * chip.bandwidth, {"all-reduce": chip.interconnect})
    machine = find("cpu:4")._replace(chip=chip)
    figures = plan._of_a_step(compiled, machine, experiment_of())
    assert figures["bounds_seconds"] == {"compute": 3.0, "memory": 2.0, "interconnect": 1.5}
    assert figures["bound_by"] == "compute" and figures["images_per_second_at_most"] == 16 / 3
