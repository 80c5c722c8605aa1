"""Compose the picture of the README, docs/overview.png, from the figures of a run."""

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDTH, GAP = 1500, 30


def main(run_dir: str) -> None:
    figures = Path(run_dir) / "figures"
    predictions = fit(figures / "predictions.png", WIDTH)
    history = fit(figures / "history.png", round(WIDTH * 0.66))
    confusion = fit(figures / "confusion_matrix.png", WIDTH - GAP - history.width)
    height = max(history.height, confusion.height)
    page = Image.new("RGB", (WIDTH, predictions.height + GAP + height), "white")
    page.paste(predictions, (0, 0))
    page.paste(history, (0, predictions.height + GAP))
    page.paste(confusion, (history.width + GAP, predictions.height + GAP))
    target = ROOT / "docs" / "overview.png"
    target.parent.mkdir(exist_ok=True)
    page.save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


def fit(path: Path, width: int) -> Image.Image:
    image = Image.open(path).convert("RGB")
    return image.resize((width, round(image.height * width / image.width)))


if __name__ == "__main__":
    main(sys.argv[1])
