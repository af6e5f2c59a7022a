"""Other people's models on our ops: transformers patched in place, module stand-ins, who is who."""

from tvkernels.integrations.patching import (
    Patch,
    Replacement,
    patch_transformers,
    unpatch_transformers,
)

__all__ = ["Patch", "Replacement", "patch_transformers", "unpatch_transformers"]
