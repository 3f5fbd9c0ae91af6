"""Run `vanilla-transformer average` from a checkout."""

import sys

from vanilla_transformer.cli import main

if __name__ == "__main__":
    main(["average", *sys.argv[1:]])
