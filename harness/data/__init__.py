"""Data: layouts, lists, manifests, splits, checks, the format audit and edits of the input."""
