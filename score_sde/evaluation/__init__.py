"""Evaluation: sample plots, metrics of samples, likelihoods and diagnostics."""
