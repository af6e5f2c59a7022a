"""The loss of packed samples against upstream's recorded gradients."""
