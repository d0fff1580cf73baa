"""Checks of groups of settings, before anything is computed."""

from collections.abc import Mapping
from typing import Any

from score_sde.errors import UserError, lookup
from score_sde.likelihood import DIVERGENCES
from score_sde.solvers import METHODS, SPACINGS


def check_likelihood(how: Mapping[str, Any]) -> None:
    """Refuses settings that `log_likelihood` would refuse."""
    where = "--config.likelihood"
    for name in ("num_probes", "num_draws", "num_examples", "batch_size", "max_steps"):
        check_at_least_one("likelihood", name, how[name])
    for name, table in (("divergence", dict.fromkeys(DIVERGENCES)), ("method", METHODS)):
        lookup(name, table, how[name], f"{where}.{name}")
    if not (how["rtol"] > 0 and how["atol"] > 0 and how["chain_steps"] >= 0):
        raise UserError(f"likelihood: need rtol > 0, atol > 0 and chain_steps >= 0, got {how} (set {where})")
    if how["importance"] and how["divergence"] != "exact":
        raise UserError(
            "the importance-weighted bound takes log mean exp of log p, which the noise of Hutchinson's estimate would "
            f"raise above the truth (set {where}.divergence=exact, or {where}.importance=False)"
        )


def check_certify(how: Mapping[str, Any]) -> None:
    """Refuses settings that leave nothing to certify, or nothing to certify it by."""
    check_at_least_one("certify", "num_samples", how["num_samples"])
    for name in how["spacings"]:
        lookup("spacing", SPACINGS, name, "--config.certify.spacings")
    enough = how["reference_steps"] >= 2 and how["nfe"] and min(how["nfe"]) >= 1 and len(set(how["refinements"])) >= 3
    if not enough or min(how["refinements"]) < 1:
        raise UserError(
            "certify: need reference_steps >= 2, some nfe >= 1 and three different refinements >= 1, got "
            f"{how['reference_steps']}, {how['nfe']} and {how['refinements']} (set --config.certify)"
        )


def check_at_least_one(group: str, name: str, value: Any) -> None:
    if not (isinstance(value, int) and value >= 1):
        raise UserError(f"{group}: {name} must be an integer of at least 1, got {value} (set --config.{group}.{name})")


def check_divides(group: str, batch_size: int, num_devices: int) -> None:
    """Refuses a global batch that the devices don't share evenly."""
    if batch_size < 1 or batch_size % num_devices:
        raise UserError(
            f"{group}: the global batch of {batch_size} doesn't divide among {num_devices} devices; take a multiple of "
            f"{num_devices} (set --config.{group}.batch_size)"
        )
