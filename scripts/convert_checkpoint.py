"""Run `vanilla-transformer convert` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
