"""A million files: what an index and predictions of them take, and how much loaders' workers grow.

The files are links to tiny images, in folders of classes. Run it with `python benchmarks/scale.py`,
on Linux; the last line is JSON: seconds, and megabytes above those of the imports.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from resnet_ft import Predictor, eval_transform, index_dataset, make_dataloaders

CLASSES = 100
_BATCH = 64


def make_links(folder: Path, count: int) -> Path:
    """`count` names, four of five in Train, for one tiny image in each folder of a class."""
    for split, share in (("Train", 0.8), ("Val", 0.2)):
        for number in range(CLASSES):
            images = folder / split / f"class_{number:03d}"
            images.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(images / "photograph_0000000.png")
            for i in range(1, int(count * share) // CLASSES):
                os.link(images / "photograph_0000000.png", images / f"photograph_{i:07d}.png")
    return folder


def memory(field: str, *, file: str = "status", pid: int | str = "self") -> float:
    """What a process holds in megabytes: a field of a file in /proc."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def measure_index(folder: Path) -> dict[str, float]:
    before, start = memory("VmRSS"), time.perf_counter()
    index = index_dataset(folder)
    seconds = time.perf_counter() - start
    held, most = memory("VmRSS") - before, memory("VmHWM") - before
    start = time.perf_counter()
    index.fingerprint()
    return {
        "files": len(index.images),
        "index_s": seconds,
        "index_mb": held,
        "index_peak_mb": most,
        "fingerprint_s": time.perf_counter() - start,
    }


def measure_epoch(folder: Path, cache_dir: Path) -> dict[str, float]:
    """An epoch of two workers: the memory of the larger one after a hundred batches and at the end.

    That is its share of what is no file's, as the cache is: a page that it copies counts whole.
    """
    before, start = memory("VmRSS"), time.perf_counter()
    loader = make_dataloaders(
        folder,
        image_size=8,
        batch_size=_BATCH,
        train=eval_transform(8),
        num_workers=2,
        cache_dir=cache_dir,
    )["train"]
    seconds, held = time.perf_counter() - start, memory("VmRSS") - before
    start = time.perf_counter()
    next(iter(loader.batch_sampler))
    order_s, sizes = time.perf_counter() - start, {}
    for number, _ in enumerate(loader, start=1):
        if number in (100, len(loader)):
            workers = [child.pid for child in multiprocessing.active_children()]
            sizes[number] = max(memory("Pss_Anon", file="smaps_rollup", pid=pid) for pid in workers)
    first, last = sizes.values()
    return {
        "loaders_s": seconds,
        "loaders_mb": held,
        "order_s": order_s,
        "batches": len(loader),
        "worker_first_mb": first,
        "worker_last_mb": last,
    }


class _Tiny(torch.nn.Module):
    """A network that takes next to no time, and looks at the memory of the workers meanwhile."""

    workers_mb = 0.0
    batches = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        _Tiny.batches += len(images) > 0  # so that torch.fx cannot trace it
        if _Tiny.batches % 100 == 0:
            workers = [child.pid for child in multiprocessing.active_children()]
            held = sum(memory("Pss_Anon", file="smaps_rollup", pid=pid) for pid in workers)
            _Tiny.workers_mb = max(_Tiny.workers_mb, held)
        return images.mean(dim=(2, 3))


def measure_predictions(folder: Path, csv: Path) -> dict[str, float]:
    """From the folder to a table of the three most probable classes: seconds, and memory at most.

    The second number is what two workers have that is no file's, both together.
    """
    predictor = Predictor(_Tiny(), ["red", "green", "blue"], eval_transform(8))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    before, start = memory("VmRSS"), time.perf_counter()
    table = predictor.predict_folder(folder, csv, top_k=3, batch_size=_BATCH, num_workers=2)
    return {
        "predicted": len(table),
        "predict_s": time.perf_counter() - start,
        "predict_peak_mb": memory("VmHWM") - before,
        "predict_workers_mb": _Tiny.workers_mb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_links(Path(temporary, "photographs"), options.files)
        measured = measure_index(folder) | measure_epoch(folder, Path(temporary, "cache"))
        measured |= measure_predictions(folder, Path(temporary, "predictions.csv"))
    print(json.dumps({name: round(value, 2) for name, value in measured.items()}))


if __name__ == "__main__":
    main()
