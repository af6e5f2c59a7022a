"""Pixel values to patch features.

    encoder.py       what all encoders share: frames or clips in, features out
    blocks.py        patches, attention, layer scale, MLP, transformer block
    vit.py           SigLIP: frame by frame
    dinov2.py        DINOv2: frame by frame, with a class token and registers
    umt.py           UMT: clips of frames, computed positions
    internvideo2.py  InternVideo2: clips of frames, a class token
    radio.py         C-RADIO: frames or tubelets of any grid, a prefix of class tokens and registers
    build.py         the encoder that a configuration names

Each encoder stops at the layer whose features the projector reads.
"""
