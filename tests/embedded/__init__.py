"""The trained model that comes with the package."""
