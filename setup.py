import tempfile

from setuptools import setup

# a build folder in the tree would slip deleted modules into the next wheel
with tempfile.TemporaryDirectory() as folder:
    setup(options={"build": {"build_base": folder}})
