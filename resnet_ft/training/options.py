"""The parameters of notebooks, shell and `fine_tune`: types, ranges and choices, in one table.

papermill, YAML and JSON give "false" or "1e-4" as text and the folder 2024 as a number. What is
meant beyond doubt is converted, and said; the rest is refused by name before any work.
"""

import ast
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import partial
from os import PathLike
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from resnet_ft.errors import ParameterError


class Range(NamedTuple):
    """The numbers that a parameter may be."""

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf

    def __call__(self, number: float) -> None:
        """Raise ValueError for a number that is not in the range."""
        if not (number >= self.least and self.above < number < self.below):
            raise ValueError

    def __str__(self) -> str:
        ends = [f"of {self.least:,} or more"] if math.isfinite(self.least) else []
        ends += [f"above {self.above:,}"] if math.isfinite(self.above) else []
        ends += [f"below {self.below:,}"] if math.isfinite(self.below) else []
        return " and ".join(ends)


def _check_architecture(arch: str) -> None:
    from resnet_ft.models.build import check_architecture  # which torch takes seconds to load

    check_architecture(arch)


_Count = Annotated[int, Range(1)]
_NotNegative = Annotated[int, Range(0)]
_Positive = Annotated[float, Range(above=0)]
_Seed = Annotated[int, Range(0, below=2**63)]  # torch and NumPy take these


@dataclass(frozen=True)
class FineTuneOptions:
    """How `fine_tune` trains: the options that change a run's numbers, as config.json records them.

    Their meaning and their defaults stand at `fine_tune`. Text that means a number, True, False or
    None becomes that, with a warning; raises ParameterError, naming the option, for anything that
    is of another type, out of range or none of the choices.
    """

    epochs: _NotNegative | None = None
    minutes: _Positive | None = None
    learning_rate: _Positive | None = None
    weight_decay: Annotated[float, Range(0)] = 0.05
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Literal["cosine", "linear", "constant"] | Callable[[float], float] = "cosine"
    label_smoothing: Annotated[float, Range(0, below=1)] = 0.0
    mix: Literal["mixup", "cutmix", "both"] | None = None
    balance: Literal["loss", "sampler"] | None = None
    train_batchnorm: bool = False
    average_weights: bool = True
    patience: _Count | None = None
    clip_grad_norm: _Positive | None = None
    seed: _Seed = 0

    def __post_init__(self) -> None:
        say = partial(warnings.warn, stacklevel=5)  # where fine_tune was called
        for name, value in checked(vars(self), say=say).items():
            object.__setattr__(self, name, value)

    def described(self) -> dict[str, object]:
        """Plain data for config.json: a function is described by its name."""
        return asdict(self) | {"schedule": getattr(self.schedule, "__qualname__", self.schedule)}

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options."""
        return [one.name for one in fields(cls)]


@dataclass(frozen=True)
class RunOptions:
    """What config.json says of a run beside `FineTuneOptions`, as notebook 03 does."""

    data_source: str = "sample"
    arch: Annotated[str, _check_architecture] = "resnet101"
    weights: str | None = "auto"
    freeze_until: str | None = None
    image_size: _Count = 224
    batch_size: _Count = 32
    augmentation: Literal["light", "medium", "strong"] = "medium"
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    seed: _Seed = 0


# The parameters of notebooks and of `train_run` that no config.json records.
_OTHERS: dict[str, Any] = {
    "data_dir": str | None,  # None: the last choice, in notebook 04 the data of the run
    "runs_dir": str,
    "run_name": str | None,  # as data_dir: None, the last choice
    "mount_point": str,
    "staging_dir": str,
    "compare_archs": str | None,
    "compare_with": str | None,
    "max_side": _Count | None,
    "pack_as": str | None,
    "num_workers": _NotNegative | None,
    "lr_finder_steps": Annotated[int, Range(20)] | Literal[0] | None,
    "num_processes": _Count,
    "gradient_accumulation_steps": _Count | None,
    "save_minutes": _Positive,
    "keep_resume_state": bool,
    "disconnect_when_done": bool,
    "unmount": bool,
    "num_images": _Count,
    "folder": str | None,
    "image": str | None,
    "top_k": _Count,
    "tta": bool,
    "normalised": bool,
    **dict.fromkeys(("make_onnx", "make_web_page", "make_bundle"), bool),
}

# What each name may be, wherever it is a parameter.
_HINTS: dict[str, Any] = {
    **get_type_hints(FineTuneOptions, include_extras=True),
    **get_type_hints(RunOptions, include_extras=True),
    **_OTHERS,
}


# The parameters of each notebook, in the order of its cell "Your parameters".
_PLACES = ("mount_point", "staging_dir")
NOTEBOOKS: dict[str, tuple[str, ...]] = {
    "01_mount_drive": ("data_dir", "max_side", "pack_as", "runs_dir", *_PLACES),
    "02_explore_data": (
        *("data_dir", "runs_dir", "arch", "image_size", "batch_size", "augmentation"),
        *("num_workers", *_PLACES),
    ),
    "03_train": (
        *("data_dir", "runs_dir", "run_name", "arch", "image_size", "batch_size", "epochs"),
        *(
            "augmentation",
            "compare_archs",
            "weights",
            "freeze_until",
            "minutes",
            "patience",
            "learning_rate",
        ),
        *("weight_decay", "optimizer", "schedule", "clip_grad_norm", "train_batchnorm"),
        *("label_smoothing", "mix", "balance", "lr_finder_steps", "num_processes"),
        *("mixed_precision", "gradient_accumulation_steps", "num_workers", "save_minutes"),
        *("keep_resume_state", "unmount", "disconnect_when_done", "seed", *_PLACES),
    ),
    "04_visualize": (
        *("runs_dir", "run_name", "data_dir", "batch_size", "num_images", "compare_with"),
        *("num_workers", *_PLACES),
    ),
    "05_infer": (
        *("runs_dir", "run_name", "folder", "image", "top_k", "make_onnx", "make_web_page"),
        *("make_bundle", "batch_size", *_PLACES),
    ),
}


def checked(
    given: Mapping[str, object],
    *,
    wrong: Sequence[str] = (),
    remedy: str = "",
    say: Callable[[str], object] = warnings.warn,
    from_form: bool = False,
) -> dict[str, Any]:
    """Parameters as what they are meant to be; `say` is told which have become something else.

    With `from_form` it is not told of what a form cannot give otherwise: "" for None, "5" for 5.
    A name may follow another one and a dot: "fine_tune.epochs". Raises one ParameterError for all
    that are unknown, of another type, out of range or none of the choices, and for what the caller
    found `wrong`; it ends with the `remedy`.
    """
    values: dict[str, Any] = {}
    converted, problems = [], list(wrong)
    for name, value in given.items():
        if (hint := _HINTS.get(name.rpartition(".")[2])) is None:
            problems.append(f"{name} is not a parameter.")
            continue
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            value = value.item()  # noqa: PLW2901 - a number of NumPy's or torch's
        try:
            values[name] = _convert(value, hint)
        except ParameterError as error:
            problems.append(str(error))
        except (ValueError, OverflowError):
            *most, last = _alternatives(hint)
            expected = " or ".join(([", ".join(most)] if most else []) + [last])
            problems.append(f"{name}={value!r} should be {expected}.")
        else:
            if values[name] != value and not (from_form and value in ("", str(values[name]))):
                converted.append(f"{name} {value!r} as {values[name]!r}")
    if {"epochs", "minutes"} <= {
        name.rpartition(".")[2] for name, value in values.items() if value is not None
    }:
        problems.append("Give epochs or minutes, not both.")
    if problems:
        raise ParameterError("\n".join([*problems, remedy]).strip())
    from resnet_ft import distributed

    if converted and distributed.is_main():
        say(f"Taken as it is meant: {', '.join(converted)}.")
    return values


def check_parameters(notebook: str) -> None:
    """Check the parameters of the notebook that calls this, before it does anything else.

    Text that means a number, True, False or None, as papermill and YAML give it, becomes that in
    the notebook, and so does a folder that is given as a number: a line says which. (An empty field
    of a form is None, "5" in it is 5: no line says so.) Raises ParameterError, naming all of them,
    for parameters of another type, out of range or none of the choices, for any name in the cell
    "Your parameters" or given to papermill that is no parameter of this `notebook` ("03_train"),
    and for a name in another cell that looks like a misspelt one. Outside of IPython it does
    nothing.
    """
    from resnet_ft.notebook import executed_cells

    if notebook not in NOTEBOOKS:
        raise ParameterError(f"{notebook!r} should be one of {', '.join(NOTEBOOKS)}.")
    namespace, cells = executed_cells()
    own = NOTEBOOKS[notebook]
    assigned = [_assigned(cell) for cell in cells]
    unknown = _unknown(cells, assigned, own)
    unknown |= _misspelt(assigned, own, namespace)
    wrong = []
    if unknown:
        names = [f"{name} (did you mean {one}?)" if one else name for name, one in unknown.items()]
        wrong.append(
            f"This notebook has no parameter {', '.join(names)}. It has: {', '.join(own)}."
        )
    literals = {name for names in assigned for name, literal in names.items() if literal}
    given = {name: namespace[name] for name in own if name in literals and name in namespace}
    remedy = (
        'Correct them in the cell "Your parameters", or the -p options of papermill; variables of '
        "your own belong into other cells."
    )
    namespace.update(checked(given, wrong=wrong, remedy=remedy, say=print, from_form=True))


def _unknown(
    cells: Sequence[str], assigned: Sequence[Mapping[str, bool]], own: Sequence[str]
) -> dict[str, str]:
    """Names in the cell of the parameters that are none, each with the nearest one or "".

    That cell is known by assigning most parameters; papermill adds another one after it. Of a cell
    that was executed several times, the last time counts.
    """
    rows = dict[str, int]()
    for row, names in enumerate(assigned):
        if cells[row].startswith("# Parameters"):
            rows["papermill's"] = row
        elif 2 * len({*own} & {*names}) > len(own):
            rows = {"own": row}
    unknown = {name for row in rows.values() for name in assigned[row]} - {*own}
    return {name: _nearest(name, own, 0.6) for name in sorted(unknown)}


def _misspelt(
    assigned: Sequence[Mapping[str, bool]], own: Sequence[str], namespace: Mapping[str, object]
) -> dict[str, str]:
    """Names in any cell that are nearly those of parameters, and have a value for one.

    Not where the variable is gone, or a later cell assigns the parameter itself.
    """
    found = {}
    for row, names in enumerate(assigned):
        for name, literal in names.items():
            meant = _nearest(name, own, 0.75) if literal and name not in own else ""
            later = {known for names in assigned[row + 1 :] for known in names}
            if meant and name in namespace and not {meant, name} & later:
                with suppress(ParameterError):
                    checked({meant: namespace[name]}, say=lambda text: None)
                    found[name] = meant
    return found


def _nearest(name: str, own: Sequence[str], likeness: float) -> str:
    return next(iter(get_close_matches(name, own, n=1, cutoff=likeness)), "")


def _assigned(source: str) -> dict[str, bool]:
    """The names that a cell assigns, and whether to a literal, as a parameter is."""
    names = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # such a cell did nothing
        return {}
    for node in statements:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            try:
                ast.literal_eval(node.value)
                literal = True
            except (ValueError, OverflowError):
                literal = False
            for target in targets:
                if isinstance(target, ast.Name):
                    names[target.id] = literal
    return names


def _convert(value: Any, hint: Any) -> Any:
    """The value as one of the hint's type; ValueError where it cannot be meant to be one."""
    kind, parts = _parts(hint)
    if kind is Annotated:
        converted = _convert(value, parts[0])
        for rule in parts[1:]:
            rule(converted)
        return converted
    for part in parts if kind is Union else ():
        with suppress(ValueError):
            return _convert(value, part)
    if hint in _PLAIN:
        return _PLAIN[hint][0](value)
    for choice in parts if kind is Literal else ():
        # YAML takes "no" for False.
        if _word(value) in (choice, str(choice)) or (value is False and choice == "no"):
            return choice
    if kind is Callable and callable(value):
        return value
    raise ValueError


def _alternatives(hint: Any) -> list[str]:
    """What may be given in place of a value that cannot be used."""
    kind, parts = _parts(hint)
    if kind is Annotated:
        (text,) = _alternatives(parts[0])
        return [" ".join([text, *(str(rule) for rule in parts[1:] if isinstance(rule, Range))])]
    if kind is Union:
        return [text for part in parts for text in _alternatives(part)]
    if kind is Literal:
        return [json.dumps(choice) for choice in parts]
    return ["a function"] if kind is Callable else [_PLAIN[hint][1]]


def _parts(hint: Any) -> tuple[Any, list[Any]]:
    """What a compound type is, and what it consists of: None first, as "null" is also a text."""
    kind = Union if isinstance(hint, UnionType) else get_origin(hint)
    return kind, sorted(get_args(hint), key=lambda part: part is not NoneType)


def _word(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _none(value: Any) -> None:
    if _word(value) not in (None, "none", "null", ""):
        raise ValueError


def _boolean(value: Any) -> bool:
    for meant, words in ((True, ("true", "yes", "on", "1")), (False, ("false", "no", "off", "0"))):
        if _word(value) in (*words, meant):  # 1 is equal to True
            return meant
    raise ValueError


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        value = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return value


def _whole_number(value: Any) -> int:
    if (number := _number(value)) % 1:
        raise ValueError
    return int(number)


def _text(value: Any) -> str | PathLike:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, PathLike) or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError


# How a plain type is converted to, and how it is called.
_PLAIN: dict[type, tuple[Callable[[Any], Any], str]] = {
    NoneType: (_none, "None"),
    bool: (_boolean, "True or False"),
    int: (_whole_number, "a whole number"),
    float: (_number, "a number"),
    str: (_text, "text in quotes (with papermill: -r in place of -p)"),
}
