"""benchmarks/machine_code: kernels compiled without a GPU (`make aot`).

conftest.py       Triton without its interpreter, or the tests are skipped
test_kernels.py   every shipped kernel in every configuration, on six targets
test_gate.py      kernels that are made to be wrong, read and refused; the page of results
"""
