"""Configs: one file per experiment."""
