"""The network: vision encoder, projector and LLM.

    model.py       the three parts as one module; text and vision as one sequence, checked
    projector.py   patch features to merged visual tokens
    nemotron_h.py  the LLM's layers: Mamba-2, attention, MLP, experts
    experts.py     the MLP and the mixture of experts
    attention.py   attention over packed samples, or over a cache
    qwen2.py       what Qwen2's layers add: rotary positions, the gated MLP
    stack.py       the loop through the layers, with compression stages between them
    transv.py      one compression stage: drop vision tokens, add their content to the text
    content.py     how much each token differs from the frame before
    cache.py       keys, values and states between calls
    mamba_state.py  a Mamba-2 layer's state, and the tokens that are not written into it yet
    fingerprint.py  what weights are, as one short text
    initialize.py  random weights as the family initialises them

`vision/` turns pixel values into patch features.
"""
