"""Training: trainers, checkpoints, mirror gradient, several processes."""
