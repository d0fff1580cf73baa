"""Ahead-of-time estimates of a training run's memory, compute and communication on machines that are not available."""
