"""Compose the picture of the README, docs/overview.png, from the figures of a run."""

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDTH, GAP = 1500, 30


def main(run_dir: str) -> None:
    figures = Path(run_dir) / "figures"
    predictions = fit(figures / "predictions.png", round(WIDTH * 0.42))
    history = fit(figures / "history.png", WIDTH - GAP - predictions.width)
    confusion = fit(figures / "confusion_matrix.png", round(history.width * 0.65))
    height = max(predictions.height, history.height + GAP + confusion.height)
    page = Image.new("RGB", (WIDTH, height), "white")
    page.paste(predictions, (0, 0))
    page.paste(history, (predictions.width + GAP, 0))
    page.paste(confusion, (predictions.width + GAP, history.height + GAP))
    target = ROOT / "docs" / "overview.png"
    target.parent.mkdir(exist_ok=True)
    page.save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


def fit(path: Path, width: int) -> Image.Image:
    image = Image.open(path).convert("RGB")
    return image.resize((width, round(image.height * width / image.width)))


if __name__ == "__main__":
    main(sys.argv[1])
