"""`python -m steer`: the same as the console script `steer`."""

import sys

from steer.cli import main

if __name__ == "__main__":
    sys.exit(main())
