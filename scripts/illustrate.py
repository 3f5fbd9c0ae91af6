"""Run `vanilla-transformer illustrate` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["illustrate", *sys.argv[1:]])
