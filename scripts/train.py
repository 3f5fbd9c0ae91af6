"""Run `vanilla-transformer train` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
