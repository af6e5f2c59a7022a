"""Models in files: our own format, and the parts that other projects publish.

    load.py         a model in our own format or as it is released, its tokenizer
    save.py         a model into a directory, all or nothing
    config_file.py  the model's shape as config.json, written and read back
    weights.py      weight files into a module: compare everything, then read shard by shard
    files.py        where files lie, what they say of themselves, how they are opened
    mapping.py      where a stored tensor goes
    nemotron_h.py   Nemotron-H's configuration and weight names
    siglip.py       SigLIP's configuration and weight names
    dinov2.py       DINOv2's weight names
    umt.py          UMT's weight names
    internvideo2.py  InternVideo2's weight names
    radio.py        C-RADIO's weight names
    encoder.py      the weight names of the encoder that a configuration names
    qwen2.py        Qwen2's configuration and weight names
    llm.py          those of the LLM that a config.json describes
    videochat_flash.py  VideoChat-Flash's configuration and weight names
    nemotron_vl.py  configuration and weight names of NVIDIA's hybrid video models
    upstream.py     upstream TimeViper's specifiers and checkpoints

What other projects call things is known to this folder alone.
"""
