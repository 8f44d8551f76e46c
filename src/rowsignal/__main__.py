"""`python -m rowsignal` is `rowsignal`."""

import sys

from rowsignal.cli import main

sys.exit(main())
