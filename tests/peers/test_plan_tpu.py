"""Plans for TPU slices, by libtpu's compiler, on a machine without one."""

import jax
import pytest

from configs import toy2d
from score_sde.experiment import make_experiment
from score_sde.planning.plan import plan

pytestmark = pytest.mark.peers


def experiment_of(batch_size):
    config = toy2d.get_config()
    config.training.batch_size = batch_size
    return make_experiment(config, jax.devices()[:1])


@pytest.mark.parametrize("slices", [("v5e:2x2", "v5e:4x4"), ("v6e:2x2", "v6e:4x4"), ("v5p:2x2x1", "v5p:2x2x2")])
def test_a_device_of_a_larger_slice_does_the_same(slices):
    """At a fixed batch a device the FLOPs a device are constant, and what is all-reduced is the gradients."""
    found = [plan(experiment_of(64 * n), slice, search=False) for slice in slices for n in [devices(slice)]]
    assert [figures["devices"] for figures in found] == [devices(slice) for slice in slices]
    assert abs(found[0]["flops_per_device"] / found[1]["flops_per_device"] - 1) < 0.02
    for figures in found:
        assert abs(figures["collective_bytes"]["all-reduce"] / figures["gradient_bytes"] - 1) < 0.02
        assert figures["fits"] and figures["memory_bytes"] < 2**30
        assert figures["images_per_second_at_most"] > 0


def test_a_batch_that_does_not_fit_is_found():
    figures = plan(experiment_of(4 * 2**16), "v5e:2x2", search=True)
    largest = figures["largest_batch_per_device"]
    assert largest["fits"] >= 2**16
    assert largest["too_large"] is None or largest["too_large"] > largest["fits"]


def test_a_megacore_is_one_device():
    assert plan(experiment_of(64), "v4:2x2x1", search=False)["devices"] == 4


def devices(topology):
    total = 1
    for size in topology.split(":")[1].split("x"):
        total *= int(size)
    return total
