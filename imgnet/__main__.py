"""``python -m imgnet`` is the command ``imgnet``."""

from imgnet.cli import app

if __name__ == "__main__":
    app(prog_name="imgnet")
