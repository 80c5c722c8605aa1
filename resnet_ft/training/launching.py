"""A run in several processes, started from one: a notebook, say, which could not split itself."""

import signal
import subprocess
import sys
from collections import deque
from os import PathLike

from resnet_ft.errors import TrainingError
from resnet_ft.training.runs import Run
from resnet_ft.training.starting import start_run


def launch_training(
    run: Run,
    num_processes: int,
    *,
    data_dir: str | PathLike | None = None,
    save_minutes: float = 5.0,
    **options: object,
) -> None:
    """Train a run that was started by `num_processes` processes of this machine, one for each GPU.

    What they print appears here. `options` are those of `fine_tune`, which, called afterwards with
    the same, returns at once with the model. An interrupt ends the processes; their last complete
    step is saved, if the half minute that torchrun gives them suffices for that. Raises
    TrainingError, with their last words, where they fail.
    """
    start_run(run, fine_tune=options)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc_per_node={num_processes}", "-m", "resnet_ft", "train"),
        *("--config", str(run.folder / "config.json"), "--save_minutes", str(save_minutes)),
        *(() if data_dir is None else ("--data_dir", str(data_dir))),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    last: deque[str] = deque(maxlen=20)
    try:
        for line in process.stdout:
            last.append(line)
            print(line, end="")
        process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.terminate()
    if process.returncode:
        raise TrainingError(
            f"Training in {num_processes} processes failed ({process.returncode}). Run it again to "
            f"go on, when what they said last is put right:\n{''.join(last)}"
        )
