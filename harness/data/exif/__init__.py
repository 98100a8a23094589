"""EXIF of photographs: one tidy table, which tags carry information, levels, and the label file for pretraining."""
