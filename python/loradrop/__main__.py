"""``python -m loradrop`` is the command ``loradrop``."""

from loradrop.cli import main

if __name__ == "__main__":
    main(prog_name="loradrop")
