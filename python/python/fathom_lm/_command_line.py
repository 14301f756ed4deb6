"""The command `fathom`."""

from __future__ import annotations

import signal
import sys

from . import _native


def main() -> int:
    """Runs the command line; the same as the binary `fathom`."""
    # Ctrl-C ends it at once: Python's own handler would run only after the command has ended.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _native.main(["fathom", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
