"""`python -m expunge` is the command `expunge`."""

from expunge.cli import main

if __name__ == "__main__":  # worker processes import this file again, under another name
    main()
