"""The command `fathom`."""

from __future__ import annotations

import signal
import sys

from . import _native


def main() -> int:
    """Runs the command line, as the binary of the same name."""
    # Ctrl-C ends it at once: Python would only make a note until the command is over.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _native.main(["fathom", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
