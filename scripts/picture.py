"""Make the picture of the README, docs/overview.png: two parts of a run's report, in Chromium."""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1000, 1800  # pixels of each part
PARTS = ("body", "#sure")  # where they begin


def main(run_dir: str) -> None:
    report, target = Path(run_dir).resolve() / "report.html", ROOT / "docs" / "overview.png"
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
    picture = Image.new("RGB", (WIDTH * len(PARTS), HEIGHT))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(report.as_uri())
        for number, part in enumerate(PARTS):
            page.evaluate(
                f"document.querySelector('{part}').scrollIntoView({{behavior: 'instant'}})"
            )
            picture.paste(Image.open(BytesIO(page.screenshot())), (number * WIDTH, 0))
        browser.close()
    picture.quantize(256).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
