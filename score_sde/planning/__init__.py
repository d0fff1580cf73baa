"""Ahead-of-time plans of a training run for machines that are not at hand (`--mode=plan`)."""
