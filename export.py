"""Turn a run into a bundle: ``python export.py run=<run>``; ``--help`` shows the options."""

import sys

from twotower.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
