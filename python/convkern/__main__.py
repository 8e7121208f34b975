"""`python -m convkern` is `convkern`."""

import sys

from .cli import main

sys.exit(main())
