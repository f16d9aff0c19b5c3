import sys

from nystra_bench.fetch.command import main

sys.exit(main())
