"""Run `vanilla-transformer evaluate` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
