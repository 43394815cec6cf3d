"""``python -m fatwood`` is the command ``fatwood``."""

from fatwood.cli import main

main()
