"""`python -m negbank`: the command line."""

import sys

from negbank.train.commands import main

if __name__ == "__main__":
    sys.exit(main())
