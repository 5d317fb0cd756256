"""`python -m r2kd_ext` is `r2kd`."""

import sys

from .cli import main

sys.exit(main())
