"""``python -m nystra_bench``."""

import sys

from nystra_bench.cli import main

sys.exit(main())
