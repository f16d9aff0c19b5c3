"""``python -m nystra_bench.conformance``."""

import sys

from nystra_bench.conformance.command import main

sys.exit(main())
