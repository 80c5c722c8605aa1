"""Call one reader on many files in a separate process, which may crash, hang or fill the memory."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_ADDRESS_SPACE = 12 * 2**30  # a reader that takes too much memory fails, and not the machine


@dataclass(frozen=True)
class Outcome:
    """What a reader did with a file: "read", "listed", "raised", "hung" or "crashed"."""

    status: str
    detail: str = ""
    size: tuple[int, int] | None = None
    halves: tuple[tuple[float, ...], ...] | None = None
    seconds: float = 0.0
    megabytes: float = 0.0  # the peak of the process up to the end of this file
    files: tuple[str, ...] = ()  # that a reader of data sets lists


def read_isolated(reader: str, paths: Sequence[Path], *, seconds: int = 20) -> dict[Path, Outcome]:
    """The outcome of each path with this reader of READERS, each within `seconds`."""
    outcomes: dict[Path, Outcome] = {}
    while len(outcomes) < len(paths):
        rest = [str(path) for path in paths[len(outcomes) :]]
        run = subprocess.run(
            [sys.executable, __file__, reader, str(seconds)],
            input=json.dumps(rest),
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode > 0:  # not ended by a signal: an error in this module
            raise RuntimeError(run.stderr)
        lines = [line for line in run.stdout.splitlines() if line.startswith("{")]  # no messages
        done = [Outcome(**json.loads(line)) for line in lines]
        if len(done) < len(rest):
            word = "hung" if run.returncode == -signal.SIGALRM else "crashed"
            done.append(Outcome(word, f"exit status {run.returncode}"))
        outcomes |= dict(zip(map(Path, rest), done, strict=False))
    return outcomes


def _read(path: str) -> dict:
    from resnet_ft import open_image

    return _describe(open_image(path))


def _read_resized(path: str) -> dict:
    from resnet_ft.data.images import open_resized

    return {"halves": _describe(open_resized(path, 32))["halves"]}


def _describe(image) -> dict:
    import numpy as np

    assert image.mode == "RGB"
    third = max(1, image.width // 3)
    sides = (
        image.crop((0, 0, third, image.height)),
        image.crop((image.width - third, 0, *image.size)),
    )
    halves = [np.asarray(side.resize((1, 1), 4)).astype(float).ravel().tolist() for side in sides]
    return {"size": image.size, "halves": halves}


def _index(data_dir: str) -> dict:
    from resnet_ft import index_dataset

    return {"files": [str(path) for path in index_dataset(data_dir).paths()]}


def _load(data_dir: str) -> dict:
    from resnet_ft import make_dataloaders

    loaders = make_dataloaders(data_dir, image_size=32, num_workers=0)
    for loader in loaders.values():
        for images, _ in loader:
            assert images.isfinite().all()
    return {"files": loaders["train"].dataset.unreadable["path"].tolist()}


def _audit(data_dir: str) -> dict:
    from resnet_ft import audit_dataset

    images = audit_dataset(data_dir).images.dropna(subset="problem")
    return {"files": [str(Path(data_dir, path)) for path in images["path"]]}


READERS: dict[str, Callable[[str], dict]] = {
    "open_image": _read,
    "open_resized": _read_resized,
    "index_dataset": _index,
    "make_dataloaders": _load,
    "audit_dataset": _audit,
}


def _outcome(read: Callable[[str], dict], path: str) -> dict:
    from resnet_ft import ImageError

    started = time.perf_counter()
    try:
        outcome = {"status": "read", **read(path)}
    except ImageError as error:
        outcome = {"status": "listed", "detail": error.reason}
    except BaseException as error:
        outcome = {"status": "raised", "detail": f"{type(error).__name__}: {error}"}
    outcome["seconds"] = time.perf_counter() - started
    outcome["megabytes"] = peak_megabytes()
    return outcome


def peak_megabytes() -> float:
    """The peak memory of this process (Linux counts the parent's memory in ru_maxrss)."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts in bytes


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    for path in json.load(sys.stdin):
        signal.alarm(int(sys.argv[2]))  # ends the process, even within a decoder
        print(json.dumps(_outcome(READERS[sys.argv[1]], path)), flush=True)
