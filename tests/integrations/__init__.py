"""tvkernels inside other people's code: transformers, mamba_ssm, causal_conv1d.

conftest.py              counts the calls that reach tvkernels
models.py                transformers' Mamba-2 models, tiny
test_patching.py         which functions `patch_transformers` replaces
test_patched_models.py   patched models against unpatched ones
test_fallbacks.py        calls that an op refuses (torch.func, tracing, mixed dtypes) are handed back
test_omni.py             the omni class, whose language model is patched
test_overlap.py          blocks and threads that overlap
test_pickling.py         patches, stand-ins and their functions are pickled and copied
test_providers.py        which package provides each function
test_stand_ins.py        modules named mamba_ssm and causal_conv1d, against naive steps
test_hub.py              layers for Hugging Face's kernels package
"""
