"""Run `vanilla-transformer push` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["push", *sys.argv[1:]])
