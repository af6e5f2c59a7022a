"""The tests, in folders as the code: tests/video/test_x.py tests timeviper_fast/video/x.py.

    conftest.py      seeds, the backend of a test, tests marked `long`
    contract.py      the equivalence contract: how far a kernel may be from float64
    interpreter.py   Triton's interpreter, corrected
    sanitize.py      triton-viz's out-of-bounds checker over every kernel (`make sanitize`)
    footprint.py     what a call allocates
    goldens.py       reads the recorded tensors of data/
    nemotron_vl_directory.py  a Nemotron-Nano-VL directory in the layout of the hub
    tiny.py          the tiny configurations that all tests share
    random_model.py  a tiny model with random weights, and a video file of a moving square

    architecture/    rules of the house: imports, sizes, docstrings, the files of an op
    core/            tvkernels/core: backends, checks of arguments, device functions
    ops/             every op of tvkernels
    integrations/    patched transformers models, stand-ins for mamba_ssm and causal_conv1d
    peers/           comparisons with other projects' code
    video/ text/ model/ checkpoint/ embedded/ inference/ dataset/ synthetic/ training/
    cli/             timeviper_fast's folders
    benchmarks/      the counter, the clock and the tables of benchmarks/
    machine_code/    every kernel compiled for six GPU targets and judged (`make aot`)
    examples/        the programs of examples/ run

The files here test the modules on top of timeviper_fast (timeviper: the class `TimeViper`, its
generate, saving and loading; flash: VideoChat-Flash from frames to tokens; experts: a model with a mixture of experts; config, errors, layout, presets, stops, demo), README and docs
(test_readme.py runs them, test_docs.py compares names, figures and the picture with the code), the
wheel (test_packaging.py) and the index of data/ (test_data.py).
"""
