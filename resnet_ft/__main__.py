"""`resnet_ft`, or `python -m resnet_ft`: the library in a shell, a command for each of its tasks.

A command has the options and the defaults of the function that does its work. What that prints goes
to stderr, its result to stdout. torch loads when a command runs, which --help does not need.
"""

import io
import json as to_json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields
from functools import wraps
from inspect import Parameter, Signature, signature
from operator import methodcaller
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TextIO, Union, get_args, get_origin

import typer

import resnet_ft
from resnet_ft.errors import ParameterError, ResnetFtError
from resnet_ft.training.options import FineTuneOptions, RunOptions

# What each ARGUMENT and option means, whichever command has it.
HELP = {
    "DATA_DIR": "a folder of images",
    "SOURCE": 'photographs: a folder, an archive, an address, "kaggle:owner/name" or "sample"',
    "RUN": "the folder of a trained run, such as runs/photos-resnet101",
    "MODEL": "the folder of a trained run, or its best.pt",
    "IMAGES": "a folder of photographs, one or several files, or the address of one",
    "DESTINATION": "the folder to write to",
    "PATH": "the file or folder to write; by default named after the format",
    "allow_changes": "write it although its answers differ from the checkpoint's",
    "arch": "the network: resnet18 to resnet152, resnext50_32x4d, timm/NAME and more",
    "accuracy": "mark answers as unsure so that this share of the others is right",
    "augmentation": "how much training images are varied",
    "average_weights": "also score an average of the weights",
    "balance": 'for classes of unequal size: "loss" counts rare ones more, "sampler" shows more',
    "batch_size": "images per step; on several GPUs, all together",
    "cache_dir": "where to keep what can be computed again",
    "clip_grad_norm": "limit the norm of all gradients, for example to 1",
    "config": "a config.json to train or to resume; the same as giving it in place of SOURCE",
    "csv": "the table to write, .csv or .parquet; of a folder, by default predictions.csv",
    "data_dir": "where the images are now, if the run does not know",
    "epochs": "passes over all images; by default 5, from random weights 25; 0: the head alone",
    "examples": "publish up to six of the photographs with the page",
    "flawed": "with one of each flaw that real data sets have",
    "format": "what to write: for other programs, for a browser, or everything in one .zip",
    "freeze_until": 'fine-tune from this layer on: "layer4", or "fc" for the head alone',
    "image_size": "pixels per side that the network sees",
    "json": "write the result as JSON",
    "keep_resume_state": "keep what more epochs of a finished run need: five times the model",
    "label_smoothing": "0.1: aim at 90% for the true class, and at 10% for all alike",
    "learning_rate": "how large a step is; by default 3e-4, from random weights 1e-3",
    "max_side": "shrink images whose longer side has more pixels",
    "minutes": "in place of epochs: how long training may take",
    "mix": "train on mixtures of two images",
    "mixed_precision": '"auto": what the GPU is good at',
    "num_workers": "processes that read images; by default one per core",
    "optimizer": "the rule for a step",
    "overwrite": "replace a table of something else",
    "patience": "stop after so many epochs without a lower validation loss",
    "run_dir": "the folder of the run; by default runs/SOURCE-ARCH",
    "save_minutes": "time between two saves within an epoch",
    "schedule": "how the learning rate changes",
    "seed": "the same seed gives the same result",
    "top_k": "how many classes to name for an image",
    "train_batchnorm": "let batch normalisation learn too",
    "tta": "also look at the mirror image of each, in twice the time",
    "weight_decay": "how strongly weights are pulled towards zero",
    "weights": '"auto", "DEFAULT" (an error if they cannot be had), "none", or a file',
    "workers": "files that are copied at a time",
}
_NO = {"keep_resume_state": "--drop_resume_state"}  # what turns an option off
# What a terminal would obey, what turns the direction of writing, and half a character.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_OPTION = Parameter.KEYWORD_ONLY
_item = methodcaller("item")  # a number of NumPy's as one of Python's
_LIBRARY: Any = resnet_ft  # whose names load when they are used
_Result = tuple[str, object]  # a text, and what --json writes

app = typer.Typer(
    epilog="To try it on drawings: resnet_ft train sample --arch resnet18",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("-", "_"),  # --batch-size
    },
)


@app.callback(invoke_without_command=True)
def _begin(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Fine-tune a pretrained network on folders of photographs, and use it.

    `train` is all that it takes to get a model and a report about it; the other commands look
    closer, and use the model. `resnet_ft train --help` lists the options of a command.
    """
    if context.invoked_subcommand is None:
        print(f"resnet_ft {resnet_ft.__version__}" if version else context.get_help())


def _path(made: object) -> _Result:
    return str(made), {"path": str(made)}


def _command(function: str = "", show: Callable[[Any], _Result] = _path) -> Callable:
    """Make a command of a signature: it calls a function of the library with what was given.

    `show` says how its result reads. Without a function, the command does its own work.
    """

    def decorate(work: Callable) -> Callable:
        @wraps(work)
        def command(context: typer.Context, json: bool, **values: object) -> None:
            sources = {name: str(context.get_parameter_source(name)) for name in values}
            given = {name: one for name, one in values.items() if "DEFAULT" not in sources[name]}
            out = _Shown(sys.stdout)
            try:
                with redirect_stdout(_Shown(sys.stderr)), warnings.catch_warnings():
                    warnings.showwarning = lambda message, *_: print(f"Warning: {message}")
                    does = getattr(_LIBRARY, function) if function else work
                    text, data = show(does(**given)) if function else does(**given)
            except (ResnetFtError, OSError) as error:  # a disk, a permission, a network
                sys.exit(_printable(f"{type(error).__name__}: {error}"))
            except KeyboardInterrupt:
                sys.stderr.write("Interrupted: the same command continues.\n")
                sys.exit(130)
            except Exception:
                sys.stderr.write(_printable(traceback.format_exc()))
                sys.exit(70)
            if os.environ.get("RANK", "0") == "0":  # of several processes, one answers
                print(to_json.dumps(data, indent=2, default=_item) if json else text, file=out)

        own = list(signature(work).parameters.values())
        if own[-1].kind is Parameter.VAR_KEYWORD:
            own[1:] = [*_RUN_OPTIONS, *own[1:-1]]
        json = Parameter("json", _OPTION, default=False, annotation=bool)
        context = Parameter("context", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        parameters = [context, *map(_described, [*own, json])]
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        app.command(work.__name__)(command)
        return work

    return decorate


# The **options of a run.
_RUN_OPTIONS = {
    one.name: Parameter(one.name, _OPTION, default=one.default, annotation=one.type)
    for one in (*fields(RunOptions), *fields(FineTuneOptions))
    if one.name != "data_source"
}.values()


def _described(parameter: Parameter) -> Parameter:
    """The parameter as typer wants it: what a text may be, which is no None, and its meaning."""
    name, hint, default = parameter.name, parameter.annotation, parameter.default
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = next(one for one in get_args(hint) if one is not NoneType)
    choices = "|".join(get_args(hint)) if get_origin(hint) is Literal else None
    off = f"/{_NO.get(name, f'--no_{name}')}" if default is True else ""
    if parameter.kind is _OPTION:
        about = typer.Option(f"--{name}{off}", metavar=choices, help=HELP[name])
    else:
        about = typer.Argument(metavar=name.upper(), help=HELP[name.upper()])
    return parameter.replace(annotation=Annotated[hint | None if default is None else hint, about])


class _Shown(io.TextIOBase):
    """A stream for a person: it shows the control characters of names, and `head` may close it."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        encoding = self.stream.encoding or "utf-8"
        try:
            self.stream.write(_printable(text).encode(encoding, "replace").decode(encoding))
            self.stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return len(text)


def _printable(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


@_command("make_sample_dataset")
def sample(destination: str, *, flawed: bool = False, seed: int = 0) -> None:
    """Draw a small data set to try everything with."""


@_command("stage_dataset")
def stage(
    source: str, destination: str = "data", *, workers: int = 32, max_side: int | None = None
) -> None:
    """Bring photographs to this machine: copy, download, unpack."""


def _findings(audit: Any) -> _Result:
    rows = _LIBRARY.show_table(audit.issues, index=False, empty="")
    data = {"images": len(audit.images), "issues": audit.issues.to_dict("records")}
    return f"{audit!r}\n\n{rows!r}".rstrip(), data


@_command("audit_dataset", _findings)
def audit(
    data_dir: str,
    *,
    image_size: int = 224,
    num_workers: int | None = None,
    cache_dir: str | None = None,
) -> None:
    """Find damaged images, copies and other flaws of a data set."""


@_command()
def train(
    source: str | None = None,
    *,
    run_dir: str | None = None,
    config: str | None = None,
    data_dir: str | None = None,
    num_workers: int | None = None,
    save_minutes: float = 5.0,
    keep_resume_state: bool = True,
    **options: Any,
) -> _Result:
    """Train a run on photographs, evaluate it and write its report.

    The same command, given again, resumes an interrupted run, and returns at once from a finished
    one. So does the folder of a run in place of photographs, or its config.json.
    """
    if (source := source or config) is None:
        print("Usage: resnet_ft train SOURCE, which is photographs or a config.json (see --help)")
        sys.exit(2)
    from resnet_ft import distributed
    from resnet_ft.training.evaluate import EVALUATIONS, images_of
    from resnet_ft.training.launch import run_folder

    images = {"data_dir": data_dir, "num_workers": num_workers}
    saving = {"save_minutes": save_minutes, "keep_resume_state": keep_resume_state}
    _, history = _LIBRARY.train_run(source, run_dir=run_dir, **images, **saving, **options)
    kept = _LIBRARY.scored_weights(history).query("kept").iloc[0]
    best = f"Best: {kept['weights']}, validation accuracy {kept['val_accuracy']:.1%}"
    folder = run_folder(source, run_dir, options.get("arch", RunOptions.arch))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.end()
        return f"{best}\nNext: resnet_ft evaluate {folder}", {"run": str(folder)}
    page = folder / "report.html"
    if page.exists() and page.stat().st_mtime >= (folder / "best.pt").stat().st_mtime:
        files = {split: folder / name for split, name in EVALUATIONS.items()}
        files = {split: file for split, file in files.items() if file.exists()}
        scored = {split: _LIBRARY.load_predictions(file) for split, file in files.items()}
    else:
        scored = _LIBRARY.evaluate_run(folder, **images)
        _LIBRARY.report(folder, data_dir=images_of(folder, data_dir), predictions=scored)
    text, data = _scores(scored)
    lines = [best, text, f"Report: {page}", f"Try it: resnet_ft predict {folder} PHOTO"]
    return "\n".join(lines), {"run": str(folder), "scores": data, "report": str(page)}


def _scores(predictions: Any) -> _Result:
    """How good a model is on images that it has not learned from."""
    scored = {split: one for split, one in predictions.items() if split != "train"}
    table = _LIBRARY.accuracy_summary(scored)
    formats = dict.fromkeys(table.columns.drop("images"), "{:.1%}")
    lines = [_LIBRARY.verdict(one, split) for split, one in scored.items()]
    return "\n".join([repr(_LIBRARY.show_table(table, formats)), *lines]), table.to_dict("index")


@_command("evaluate_run", _scores)
def evaluate(
    run: str,
    *,
    data_dir: str | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    accuracy: float = 0.95,
) -> None:
    """Score a run on its images, and calibrate how sure it is."""


@_command("report")
def report(run: str, *, data_dir: str | None = None) -> None:
    """Write report.html, one page about an evaluated run."""


@_command()
def predict(
    model: str,
    images: list[str],
    *,
    csv: str | None = None,
    top_k: int = 1,
    batch_size: int = 32,
    num_workers: int | None = None,
    cache_dir: str | None = None,
    overwrite: bool = False,
    tta: bool = False,
) -> _Result:
    """Predict a file, several, or all photographs in a folder.

    The table of a folder is written row by row; the same command continues it.
    """
    predictor = _LIBRARY.Predictor.load(model)
    is_folder = len(images) == 1 and Path(images[0]).is_dir()
    if len(images) == 1 and not is_folder and csv is None:
        answer = predictor.predict(images[0], top_k, tta=tta)
        return repr(answer), answer.to_dict()
    csv = csv or ("predictions.csv" if is_folder else None)
    options = {"batch_size": batch_size, "num_workers": num_workers, "cache_dir": cache_dir}
    options |= {"top_k": top_k, "overwrite": overwrite, "tta": tta}
    table = predictor.predict_folder(images[0] if is_folder else images, csv, **options)
    if csv is None:
        shown = _LIBRARY.show_table(table, {"confidence": _LIBRARY.percent}, index=False)
        return repr(shown), table.astype(object).where(table.notna(), None).to_dict("records")
    counts = {"unreadable": int(table["error"].notna().sum())}
    for flag in table.columns.intersection(["unsure", "unfamiliar"]):
        counts[flag] = int(table[flag].eq(True).sum())
    text = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{len(table):,} rows in {csv}: {text}", {"csv": csv, "rows": len(table), **counts}


@_command()
def export(
    model: str,
    path: str | None = None,
    *,
    format: Literal["onnx", "onnx-fp16", "onnx-int8", "safetensors", "web", "bundle"] = "onnx",
    data_dir: str | None = None,
    allow_changes: bool = False,
    examples: bool = True,
) -> _Result:
    """Write a model for other programs, or as a web page."""
    kind, _, precision = format.partition("-")
    function = getattr(_LIBRARY, kind if kind == "bundle" else f"export_{kind}")
    options = {"precision": precision, "data_dir": data_dir, "allow_changes": allow_changes}
    options = {name: value for name, value in options.items() if value}
    options |= {} if examples else {"examples": False}
    if wrong := {*options} - {*signature(function).parameters}:
        raise ParameterError(f"--format {format} has no {', '.join(wrong)}.")
    return _path(function(model, *([path] if path else []), **options))


def main(arguments: list[str] | None = None) -> None:
    """Run a command: `resnet_ft` in a shell."""
    try:
        app(arguments, prog_name="resnet_ft")
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    main()
