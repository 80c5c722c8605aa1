"""What keeps a run's numbers in an experiment tracker: TensorBoard, Weights & Biases, MLflow."""

from pathlib import Path

from resnet_ft.errors import ParameterError
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.state import TrainingState, describe_training


class Tracker(Callback):
    """Logs every epoch's row of the history, and the learning rate of every training step.

    `name` is one that accelerate knows, such as "tensorboard", "wandb" or "mlflow". What it keeps
    in files goes below `logging_dir`: by default the folder `tracker` of the run, else `runs`.
    Steps are counted over the whole run; what `train_model` was called with is logged as well.
    Raises ParameterError for a name that is unknown, or whose package is not installed.
    """

    only_in_main_process = True

    def __init__(self, name: str = "tensorboard", *, logging_dir: str | Path | None = None):
        self._tracker_class = _tracker_class(name)
        self.logging_dir = logging_dir

    def on_fit_begin(self, state: TrainingState) -> None:
        self._steps = 0
        project = state.run.folder.name if state.run else "resnet_ft"
        default = state.run.folder / "tracker" if state.run else "runs"
        needs_folder = self._tracker_class.requires_logging_directory
        folder = [str(self.logging_dir or default)] if needs_folder else []
        self.tracker = self._tracker_class(project, *folder)
        if hasattr(self.tracker, "start"):  # older versions of accelerate start at once
            self.tracker.start()
        self.tracker.store_init_configuration(_flat(describe_training(state)))

    def on_step_begin(self, state: TrainingState) -> None:
        if state.phase == "train":
            self._steps += 1
            self.tracker.log({"step_learning_rate": state.learning_rate}, step=self._steps)

    def on_epoch_end(self, state: TrainingState) -> None:
        numbers = {name: value for name, value in state.row.items() if _is_number(value)}
        self.tracker.log(numbers, step=self._steps)

    def on_fit_end(self, state: TrainingState) -> None:
        self.tracker.finish()

    def state_dict(self) -> dict[str, object]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self._steps = state["steps"]


def _tracker_class(name: str) -> type:
    """accelerate's class for a tracker, where its package is installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise ParameterError(f"name={name!r} is no tracker that accelerate knows: {known}.")
    if name not in {str(tracker) for tracker in get_available_trackers()}:
        raise ParameterError(
            f"The tracker {name} needs a package that is not installed: pip install {name}"
        )
    return LOGGER_TYPE_TO_CLASS[name]


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested values as one level of numbers and texts: {"optimizer_options.lr": 0.0001}."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, str | bool) or _is_number(value)
            flat[prefix + name] = value if plain else str(value)
    return flat


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
