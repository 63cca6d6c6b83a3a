"""The command of the suite that gathers evidence on a GPU: see `benchmarks.gpu.stages`."""

import sys

from benchmarks.gpu.stages import main

if __name__ == "__main__":
    sys.exit(main())
