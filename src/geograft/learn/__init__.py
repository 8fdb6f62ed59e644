"""Learning: networks, losses, the loop, checkpoints. Opens no file of geodata."""
