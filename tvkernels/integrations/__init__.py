"""Other people's models on our ops: transformers patched in place, module stand-ins, who is who."""

from tvkernels.integrations.hub import KernelLayer, kernel_mapping
from tvkernels.integrations.patching import (
    Patch,
    Replacement,
    patch_transformers,
    unpatch_transformers,
)
from tvkernels.integrations.providers import Provider, providers
from tvkernels.integrations.stand_ins import Provision, provide

__all__ = [
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
