"""Rules of the house over the whole tree.

common.py        the product's files as text and syntax, and signatures of other packages
import_map.py    which folders and modules of timeviper_fast each one may import
test_imports.py  who may import whom, what an import costs
test_ops.py      the files of an op, its kernels, references and signatures
test_size.py     lengths of files and functions; tests mirror the code
test_text.py     docstrings, public names, prints, asserts, README's tree, maps of folders
"""
