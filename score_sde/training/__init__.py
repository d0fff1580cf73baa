"""Training: state, step, loop, checkpoints, and what a run leaves behind."""
