"""Networks that several detectors are built on, under the names of their released checkpoints."""
