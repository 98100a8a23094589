"""The detectors: one file each, a folder for BLADES; the engine finds them by entry point, never by name."""
