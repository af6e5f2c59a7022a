"""The MLP's activation, relu(x)^2."""

from tvkernels.relu2.op import relu2

__all__ = ["relu2"]
