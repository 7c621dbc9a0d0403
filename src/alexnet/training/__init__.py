"""Training: the loop, its state, optimizers and schedules, checkpoints, and the run folder."""
