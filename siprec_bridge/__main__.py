"""`python -m siprec_bridge` is the `siprec-bridge` command."""

from siprec_bridge.cli import main

if __name__ == "__main__":
    main()
