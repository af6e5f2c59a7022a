"""Pixel values to patch features.

    vit.py  a plain vision transformer (SigLIP's)

Each encoder stops at the layer whose features the projector reads.
"""
