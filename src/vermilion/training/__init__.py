"""Training and conversion: corruption, objectives, one flat loop, checkpoints."""
