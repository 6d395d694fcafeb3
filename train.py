"""Train both stages: ``python train.py [group=option] [key=value]``; see ``--help``."""

import sys

from twotower.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
