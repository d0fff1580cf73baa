"""Print the planned memory of a train step's temporaries, and the memory that its first run adds.

python -m tests.plan_memory STRATEGY    (with eight virtual devices, on Linux)
"""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np

from configs import toy2d
from score_sde.experiment import make_experiment
from score_sde.planning import plan
from score_sde.training.devices import make_strategy
from score_sde.training.setup import build_train_step

NUMBER, EACH = 8, 8192


def of_process(name: str) -> int:
    """Bytes: VmRSS, resident now, or VmHWM, the most since it was last reset."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def main(strategy: str) -> None:
    config = toy2d.get_config()
    config.model.kwargs = {"features": (512, 512, 512)}
    config.training.batch_size = NUMBER * EACH
    config.training.strategy = strategy
    experiment = make_experiment(config, jax.devices()[:1])
    planned = plan.plan(experiment, f"cpu:{NUMBER}")["temporary_bytes"] * NUMBER
    parallel = make_strategy(strategy, jax.devices()[:NUMBER])
    state = experiment.training.init_state()
    batch = {
        "image": np.zeros((1, NUMBER * EACH, 2), np.float32),
        "label": np.zeros((1, NUMBER * EACH), np.int32),
        "index": np.zeros((1, NUMBER * EACH), np.int32),
    }
    like = [jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), part) for part in (state, batch)]
    run = parallel.lower(
        build_train_step(experiment.training, None, parallel.axis_name, parallel.all_gather_params), *like
    ).compile()
    placed = parallel.shard_state(state), parallel.shard_batch(batch)
    before = of_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    jax.block_until_ready(run(*placed))
    print(json.dumps({"planned": planned, "measured": of_process("VmHWM") - before}))


if __name__ == "__main__":
    main(sys.argv[1])
