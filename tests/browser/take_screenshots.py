"""Take the two pictures of the README from an illustrated page: python take_screenshots.py PAGE FOLDER.

CHROMIUM is the path of the browser, by default the one that is installed.
"""

import io
import os
import shutil
import sys
from pathlib import Path

from conftest import FLAGS, INSTALL, press, write
from PIL import Image
from playwright.sync_api import Page, sync_playwright

SENTENCE = "nine hundred and ninety-nine"
COLORS = 256  # of a picture of flat areas and text; keeps each below 300 kB


def take(page: Page, selectors: list[str], path: Path) -> None:
    """Write the part of the page from the first to the last of some elements as a small PNG."""
    page.evaluate("scrollTo(0, 0)")
    boxes = [box for selector in selectors for box in [page.locator(selector).first.bounding_box()] if box]
    left, top = min(box["x"] for box in boxes), min(box["y"] for box in boxes)
    right, bottom = (max(box[start] + box[size] for box in boxes) for start, size in (("x", "width"), ("y", "height")))
    clip = {"x": left - 24, "y": top - 24, "width": right - left + 48, "height": bottom - top + 48}
    image = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
    image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def main(page_file: str, folder: str) -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        sys.exit(INSTALL)
    if not Path(page_file).is_file():
        sys.exit(f"{page_file} is missing: make it with `make demo`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce")
        page.goto(Path(page_file).resolve().as_uri())
        write(page, SENTENCE)
        page.evaluate("document.querySelector('.bar-top').style.position = 'static'")
        take(page, ["#part-2 .part-head", "#part-2 .block >> nth=1"], Path(folder, "illustrated.png"))
        if page.locator("[data-key='load-example']").count():
            press(page, "load-example")
        take(page, ["#part-6 .block.wide", "#part-6 .block >> nth=-1"], Path(folder, "illustrated_beams.png"))
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
