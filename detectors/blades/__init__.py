"""BLADES: tasks, prompts, losses, encoder, and the two detectors built on it (one-class and binary)."""
