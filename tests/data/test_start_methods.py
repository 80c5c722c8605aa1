"""Workers are forked, spawned (Windows and macOS) or come from a server (Linux, Python 3.14)."""

import multiprocessing
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from resnet_ft import ParameterError, make_dataloaders

METHODS = [one for one in multiprocessing.get_all_start_methods() if one != "fork"]
UNGUARDED = """
import multiprocessing, sys
multiprocessing.set_start_method(sys.argv[2], force=True)
from resnet_ft import make_dataloaders
loaders = make_dataloaders(sys.argv[1], image_size=8, batch_size=4, num_workers=1)
print("batches:", len(list(loaders["train"])))
"""


def run(script, *arguments):
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_whatever_uses_processes_works_with_new_ones_too(method):
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "processes and not slow", "-p"]
    tests += ["no:cacheprovider", "tests/data", "tests/features"]
    environment = {**os.environ, "RESNET_FT_START_METHOD": method}
    done = subprocess.run(
        tests, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " 0 selected" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_script_without_a_guard_is_told_the_two_lines_and_works_with_them(
    photos, tmp_path, method
):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = run(script, photos, method)
    assert done.returncode != 0 and "batches:" not in done.stdout
    assert 'if __name__ == "__main__":\n    main()\n' in done.stderr
    before, after = UNGUARDED.split("loaders =")
    body = "    ".join(f"loaders ={after}".splitlines(keepends=True))
    script.write_text(
        f'{before}\ndef main():\n    {body}\nif __name__ == "__main__":\n    main()\n'
    )
    assert run(script, photos, method).stdout.splitlines()[-1] == "batches: 4"


def test_a_transform_that_cannot_be_sent_to_a_new_process_says_what_to_do(photos):
    loaders = make_dataloaders(photos, image_size=8, num_workers=1, val=lambda image: image)
    loaders["val"].multiprocessing_context = multiprocessing.get_context("spawn")
    with pytest.raises(ParameterError, match=r"lambda.*at the top of a module.*num_workers=0"):
        list(loaders["val"])


def load_all(photos, queue):
    loader = make_dataloaders(photos, image_size=8, batch_size=4, num_workers=2)["train"]
    queue.put(sum(len(labels) for _, labels in loader))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks")
def test_a_daemonic_process_which_may_start_no_others_loads_by_itself(photos):
    """As the workers of a multiprocessing.Pool and of Celery are."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=load_all, args=(photos, queue), daemon=True)
    process.start()
    assert queue.get() == 17
    process.join()
