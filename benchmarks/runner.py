"""Rows of a benchmark: each measured in a process of its own, and kept as soon as it is finished.

A results file is JSON: the row's name -> its date, machine and versions and what was measured.
`load_before`, the load average of the minute before, tells whether others used the machine.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent

# Nothing is downloaded, and no GPU helps one of them, where it is not about GPUs.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class Row:
    """What to run: arguments for Python, of a program whose last printed line is JSON."""

    name: str
    arguments: tuple[str, ...]
    packages: tuple[str, ...]


def run_missing(rows: Iterable[Row], results_file: Path, *, on_gpu: bool = False) -> list[str]:
    """Measure the rows that the results file lacks; the names of those that failed."""
    results = read_results(results_file)
    failed = []
    for row in rows:
        if row.name in results:
            continue
        print(f"{row.name} ...", end=" ", flush=True)
        load = round(os.getloadavg()[0], 1)
        measured = _run(row, on_gpu)
        if measured is None:
            failed.append(row.name)
            continue
        print({name: value for name, value in measured.items() if isinstance(value, float)})
        results[row.name] = {
            "date": date.today().isoformat(),
            "machine": describe_machine(),
            "load_before": load,
            "versions": {name: version(name) for name in row.packages},
            **measured,
        }
        _write(results, results_file)
    return failed


def forget(rows: Iterable[Row], results_file: Path) -> None:
    """Take the rows out of the results file, so that they are measured anew."""
    results = read_results(results_file)
    for row in rows:
        results.pop(row.name, None)
    _write(results, results_file)


def read_results(results_file: Path) -> dict[str, dict]:
    """The rows that are finished, by name."""
    return json.loads(results_file.read_text()) if results_file.exists() else {}


def describe_machine() -> str:
    """Processor, cores, memory and Python, in words."""
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = f"{platform.system()}, Python {platform.python_version()}"
    return f"{_processor()}, {len(affinity(0))} cores, {memory:.0f} GiB of memory, {python}"


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _run(row: Row, on_gpu: bool) -> dict | None:
    """What the program measured; None, and the end of what it said, where it failed."""
    hidden = {} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        [sys.executable, *row.arguments],
        cwd=BENCHMARKS,
        env=os.environ | _ENVIRONMENT | hidden,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode == 0:
        return json.loads(finished.stdout.splitlines()[-1])
    print(f"failed:\n{finished.stderr[-2000:]}", flush=True)
    return None


def _write(results: dict[str, dict], results_file: Path) -> None:
    results_file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = results_file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    unfinished.replace(results_file)
