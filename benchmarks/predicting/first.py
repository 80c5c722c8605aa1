"""From nothing to a first answer, in new processes: this library beside PyTorch's bare imports.

`python -m predicting.first scratch photograph`; the last line printed is JSON.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from predicting import CLASSES, make_weights
from resnet_ft import build_model, save_checkpoint

_ARCH = "resnet18"
_TIMES = 7
_BARE = """
import torch, torchvision
network = torchvision.models.resnet18().eval()
with torch.inference_mode():
    network(torch.zeros(1, 3, 224, 224))
"""
_OURS = """
import sys
from resnet_ft import Predictor
print(Predictor.load(sys.argv[1]).predict(sys.argv[2]))
"""


def main(scratch: Path, photograph: str) -> dict[str, object]:
    """Seconds of each, by turns: the median, and all of them."""
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="kept-", dir=scratch) as folder:
        weights = make_weights(_ARCH, scratch).file
        model = build_model(_ARCH, len(CLASSES), weights=weights)
        shown = {"image_size": 224}
        file = save_checkpoint(Path(folder, "best.pt"), model, classes=CLASSES, preprocessing=shown)
        for _ in range(_TIMES):
            for name, code in (("bare", _BARE), ("ours", _OURS)):
                command = [sys.executable, "-c", code, str(file), photograph]
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - started)
    bare, ours = (statistics.median(seconds[name]) for name in ("bare", "ours"))
    rounded = {name: [round(one, 2) for one in found] for name, found in seconds.items()}
    return {"bare_s": round(bare, 2), "ours_s": round(ours, 2), "seconds": rounded}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
