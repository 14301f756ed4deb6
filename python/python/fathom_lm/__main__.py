"""`python -m fathom_lm` is the command `fathom`."""

import sys

from ._command_line import main

sys.exit(main())
