"""Take the README's picture of a report: the top of the page in a browser (Debian's chromium), as a small PNG.

imgnet report SWEEP --baseline topology=allreduce -o report.html
python docs/picture.py report.html -o docs/report.png
"""

import argparse
import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH_PX, HEIGHT_PX = 1280, 1180
NUM_COLOURS = 128


def main() -> None:
    """Open the page, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/report.png"))
    words = parser.parse_args()
    seen = Image.open(BytesIO(photographed(words.report)))
    seen.convert("RGB").quantize(NUM_COLOURS).save(words.out, optimize=True)
    print(f"{words.out}: {words.out.stat().st_size:,} bytes")


def photographed(report: Path) -> bytes:
    """The first screen of a page, as PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH_PX, "height": HEIGHT_PX})
        page.goto(report.absolute().as_uri())
        picture = page.screenshot()
        browser.close()
    return picture


if __name__ == "__main__":
    main()
