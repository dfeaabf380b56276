"""``python -m numconv`` is the command ``numconv``."""

import sys

from .cli import main

sys.exit(main())
