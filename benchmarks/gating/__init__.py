"""What decides when a memory speaks: the gate, the relation check and the thresholds of confidence."""
