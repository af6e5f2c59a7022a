"""triton-viz's out-of-bounds checker over every kernel, at two odd sizes: `make sanitize`.

The checker runs a kernel on symbols and asks a solver for an index out of bounds, for all programs
and loop steps at once; the fences of tests/interpreter.py look at the numbers of one run. A line for
each launch says what came of it:

    in bounds     no load or store can lie outside of the tensors
    reported      one can: the line, the tensor and an address. It ends the run with exit code 1
    not followed  version 3.0 cannot say: it does not know an operation of the kernel, or takes no
                  such strides, or leaves the index of an outer loop free

It does not look for races. The fences and the poisoned lanes of the tests cover all kernels.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import re
import signal
import sys
from collections import Counter
from typing import Any

# read by triton.jit when it decorates
os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import triton
import triton_viz
from triton.runtime import KernelInterface, interpreter
from triton.runtime.interpreter import InterpretedFunction
from triton_viz.clients import Sanitizer
from triton_viz.clients.sanitizer import sanitizer
from triton_viz.core.patch import _loop_patcher

SECONDS = 60
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
TOLD = re.compile(r"→|arg: +[a-z]|Violation address")
original, patch_tensor = triton.jit, interpreter._patch_lang_tensor
found: Counter[tuple[str, str]] = Counter()


def concretize(self: Any, known: Any = sanitizer.BinarySymbolicExpr.concretize) -> Any:
    """Version 3.0 lacks quotients of known numbers."""
    if self.op != "idiv":
        return known(self)
    a, b = self.lhs.concretize(), self.rhs.concretize()
    return interpreter.TensorHandle(np.floor_divide(a.data, b.data), a.dtype.scalar)


def report(self: Any, *args: Any, known: Any = sanitizer.SymbolicSanitizer._report) -> None:
    """Bounds of the innermost loop alone hold when its accesses are checked."""
    if self.loop_stack:
        raise NotImplementedError("the index of an outer loop is left free")
    known(self, *args)


# loops are rewritten in functions of other modules too, which do not get this name
builtins._triton_viz_loop_patcher = _loop_patcher
sanitizer.BinarySymbolicExpr.concretize = concretize
sanitizer.SymbolicSanitizer._report = report


class Checked(KernelInterface[Any]):
    """A kernel that is checked at each launch, then runs in the interpreter as it is."""

    def __init__(self, plain: InterpretedFunction) -> None:
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        outcome = self.outcome(*args, **kwargs)
        if outcome.startswith("reported"):
            # run as it is, the kernel would write there
            sys.exit(f"{self.plain.fn.__name__} | {outcome}")
        found[self.plain.fn.__name__, outcome] += 1
        return self.plain.run(*args, **kwargs)

    def outcome(self, *args: Any, **kwargs: Any) -> str:
        """From a child process, because the checker leaves the interpreter changed."""
        answer, theirs = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            os.write(theirs, self.checked(*args, **kwargs).encode())
            os._exit(0)
        os.close(theirs)
        with open(answer, encoding="utf-8") as said:
            text = said.read()
        os.waitpid(child, 0)
        return text or f"not followed: no end after {SECONDS} s"

    def checked(self, *args: Any, **kwargs: Any) -> str:
        interpreter._patch_lang_tensor = patch_tensor
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                trace = triton_viz.trace(client=Sanitizer(abort_on_error=True))
                trace(InterpretedFunction(self.plain.fn)).run(*args, **kwargs)
        except SystemExit:
            lines = COLOURS.sub("", said.getvalue()).splitlines()
            told = [line.strip() for line in lines if TOLD.search(line)]
            return f"reported: {' | '.join(told[:3])}"
        except Exception as error:
            return f"not followed: {str(error).splitlines()[0][:90]}"
        return "in bounds"


def jit(fn: Any = None, **options: Any) -> Any:
    """triton.jit, whose kernels (not the functions that they call) are checked."""
    if fn is None:
        return lambda function: jit(function, **options)
    plain = original(fn, **options)
    return Checked(plain) if fn.__name__.endswith("_kernel") else plain


def main() -> None:
    triton.jit = jit
    import tvkernels
    from tests.interpreter import install
    from tests.ops.test_every_op import CASES, inputs_of, run

    install()
    total: Counter[str] = Counter()
    # the parts of a split projection are views, which the checker refuses
    for op in sys.argv[1:] or sorted(CASES.keys() - {"mamba_split_conv1d_scan_combined"}):
        # the packed sequences of the scan want a batch of one
        for batch in (1,) if op == "mamba_chunk_scan_combined" else (1, 3):
            with tvkernels.use_backend("triton"):
                run(op, inputs_of(op, batch))
        for (kernel, outcome), launches in sorted(found.items()):
            print(f"{op} | {kernel} | {launches} | {outcome}", flush=True)
            total[outcome.partition(":")[0]] += launches
        found.clear()
    print(dict(total))


if __name__ == "__main__":
    main()
