"""`python -m negbank`: the command line."""

import sys

from negbank.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
