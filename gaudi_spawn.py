"""Start a script with one process a Gaudi, as optimum-habana's gaudi_spawn.py does. See `--help`."""

import sys

from launchers.gaudi_spawn import main

if __name__ == "__main__":
    sys.exit(main())
