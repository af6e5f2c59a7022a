"""The counter by hand-made kernels; the table, and the command that counts."""
