"""The command of the suite that gathers evidence on a GPU: see `benchmarks.gpu.suite`."""

import sys

from benchmarks.gpu.suite import main

if __name__ == "__main__":
    sys.exit(main())
