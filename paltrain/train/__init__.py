"""Training: stages, schedule, engine, checkpoints, metrics and the loop that ties them."""
