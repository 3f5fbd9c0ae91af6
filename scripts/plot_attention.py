"""Run `vanilla-transformer plot` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["plot", *sys.argv[1:]])
