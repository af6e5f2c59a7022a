"""Other people's models on our ops.

    patching.py    models of transformers, their functions replaced in place
    serving.py     a call on an op, or on the function of before where the op refuses it
    stand_ins.py   modules that stand in for mamba_ssm and causal_conv1d
    references.py  the references that these packages have
    providers.py   which package provides each function that models call
    hub.py         the ops as layers for Hugging Face's kernels library

Each can be undone. A call that the ops cannot serve exactly goes to the original function, and is
counted.
"""

from tvkernels.integrations.hub import KernelLayer, kernel_mapping
from tvkernels.integrations.patching import (
    Patch,
    Replacement,
    patch_transformers,
    unpatch_transformers,
)
from tvkernels.integrations.providers import Provider, providers
from tvkernels.integrations.serving import Fallback
from tvkernels.integrations.stand_ins import Provision, provide

__all__ = [
    "Fallback",
    "KernelLayer",
    "Patch",
    "Provider",
    "Provision",
    "Replacement",
    "kernel_mapping",
    "patch_transformers",
    "provide",
    "providers",
    "unpatch_transformers",
]
