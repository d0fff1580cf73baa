"""Configs of sweeps."""
