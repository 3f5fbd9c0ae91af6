"""Run `vanilla-transformer translate` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["translate", *sys.argv[1:]])
