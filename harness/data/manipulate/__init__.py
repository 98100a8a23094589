"""Manipulated faces, the pretext task's other class: a region flipped and blended in, or the whole face warped.

`face` makes one manipulation of one face; `regions`, `flips` and `warp` are its parts; `offline` makes the files of a
folder of faces. Nothing here imports torch.
"""
