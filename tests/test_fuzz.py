"""5,100 damaged files: nothing but the library's own errors, no file elsewhere, little memory."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT

INPUTS = {
    **{"checkpoints": 900, "weights": 500, "resume_states": 500, "run_files": 1000},
    **{"shards": 800, "archives": 800, "images": 400, "caches": 200},
}
MOST_MEGABYTES = 1000


def fuzz(kind, folder) -> dict:
    """What `fuzzed.py` found, with "written elsewhere": all files outside of the folders given."""
    places = {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "cache"}
    for name in places.values():
        (folder / kind / name).mkdir(parents=True)
    settings = {name: str(folder / kind / place) for name, place in places.items()}
    settings |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, ROOT / "tests" / "fuzzed.py", kind, str(INPUTS[kind])],
        cwd=folder / kind,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert run.returncode == 0, f"{kind}: {run.returncode} {run.stderr[-2000:]}"
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as on Linux")
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(INPUTS, pool.map(lambda kind: fuzz(kind, tmp_path), INPUTS), strict=True))
    for kind, outcome in found.items():
        print(kind, {name: value for name, value in outcome.items() if name != "wrong"})
        assert outcome["read"] + outcome.get("refused", 0) == INPUTS[kind], (kind, outcome)
        assert not outcome["wrong"], (kind, outcome["wrong"])
        assert not outcome["written elsewhere"], kind
        assert outcome["megabytes"] < MOST_MEGABYTES, kind
    assert {path.name for path in tmp_path.iterdir()} == set(INPUTS)
    repaired = sum(outcome["repaired"] for outcome in found.values()) / sum(INPUTS.values())
    print(f"{repaired:.0%} of {sum(INPUTS.values())} with checksums and lengths put right")
    assert repaired >= 0.5
