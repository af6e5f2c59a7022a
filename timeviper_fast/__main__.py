"""`timeviper-fast` and `python -m timeviper_fast`: start the command line, heed Ctrl-C at once."""

from __future__ import annotations

import signal
import sys

from timeviper_fast.cli.interrupt import importing, leave


def main() -> None:
    """Import the command line and run it."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        with importing():
            from timeviper_fast.cli.main import main as run
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            # Job queues and `timeout` send SIGTERM. SystemExit runs the cleanup of partial files.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        run()
    except KeyboardInterrupt:
        leave()
    finally:
        # The answer is out. Ignore SIGINT while the interpreter shuts down.
        if heeded:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
