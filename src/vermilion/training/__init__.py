"""Training and conversion: corruption, objectives, data, one flat loop, checkpoints."""
