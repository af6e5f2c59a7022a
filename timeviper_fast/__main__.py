"""`timeviper-fast` and `python -m timeviper_fast`: start the command line, heed Ctrl-C at once."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    """Import the command line, which takes a second or more, and run it."""
    # a parent process may have set SIGINT to be ignored: leave it so
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, _leave)
    from timeviper_fast.cli.main import main as run

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # Job queues and `timeout` send SIGTERM. SystemExit runs the cleanup of partial files.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        _leave()
    finally:
        # The answer is out. Ignore SIGINT while the interpreter shuts down.
        if heeded:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(*_: object) -> NoReturn:
    """Exit at once: no work has started."""
    os.write(2, b"timeviper-fast: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
