"""Suggestions for unknown names."""

import pytest

from score_sde import ddpm
from score_sde.data import DATASETS
from score_sde.errors import UserError, closest, did_you_mean, lookup
from score_sde.models import MODELS
from score_sde.parameterization import PREDICTIONS
from score_sde.sde import SDES
from score_sde.solvers import ADAPTIVE, ODE_METHODS, SOLVERS, SPACINGS
from score_sde.training.optimizer import LR_SCHEDULES, OPTIMIZERS

CASES = [
    (
        SOLVERS | ADAPTIVE,
        {
            "dpm_solver_pp": "dpm++ dpm-solver++ DPMSolver++ dpmpp_2m DPM++2M dpm_solver",
            "dpm_solver_pp_sde": "dpmpp_2m_sde dpmpp_sde dpm++_sde",
            "euler_maruyama": "euler-maruyama em",
            "euler": "Euler",
            "heun": "k_heun heun2",
            "predictor_corrector": "pc predictor-corrector",
            "ancestral": "euler_ancestral ancestrl",
            "": "rk45 plms ode sde karras",
        },
    ),
    (
        SDES | ddpm.SCHEDULES,
        {"vp": "vpsde VPSDE VP-SDE vpp", "sub_vp": "sub-vp subvp subvpsde", "ve": "vesde", "": "velocity ot"},
    ),
    (MODELS, {"ddpmpp": "ddpm++ DDPM++", "ncsnpp": "NCSN++ ncsnpp_deep", "dit": "DiT", "": "unet edm1"}),
    (SPACINGS, {"karras": "Karras karas", "log_snr": "logsnr log-snr", "": "linear"}),
    (OPTIMIZERS, {"adamw": "adam_w AdamW", "adam": "adan", "": "sgd rmsprop"}),
    (LR_SCHEDULES, {"cosine": "cosine_decay cosin", "": "exp"}),
    (PREDICTIONS, {"epsilon": "eps", "x0": "x_0", "v": "v_prediction v-pred", "": "noise sample"}),
    (DATASETS, {"cifar10": "cifar-10 CIFAR10", "fashion_mnist": "fashion-mnist fmnist", "": "cifar100 imagenet"}),
]


@pytest.mark.parametrize(("table", "spellings"), CASES)
def test_usual_spellings_are_recognized(table, spellings):
    found = {given: closest(given, table) for texts in spellings.values() for given in texts.split()}
    assert found == {given: [name] if name else [] for name, texts in spellings.items() for given in texts.split()}


def test_equally_close_names_are_all_suggested():
    assert did_you_mean("dopri", ODE_METHODS) == " Did you mean 'dopri5' or 'dopri8'?"
    assert did_you_mean("x", ["x1", "x2", "x3", "x4"]) == did_you_mean("", ["a"]) == ""


def test_suggestion_precedes_known_names():
    with pytest.raises(UserError, match=r"^unknown thing 'abd'. Did you mean 'abc'\? Known: abc, .{0,300}\.\.\."):
        lookup("thing", dict.fromkeys(["abc", *(f"name{n}" for n in range(1000))]), "abd")


def test_control_characters_are_escaped():
    assert (
        str(UserError("no folder \x1b[31m\r\udc80\nnext", "path")) == "no folder \\x1b[31m\\r\\udc80\nnext (set path)"
    )
