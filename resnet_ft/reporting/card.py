"""model_card: what a stranger should know before using a model; `card.md` beside this is its text.

Its metadata are Hugging Face's.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from resnet_ft.errors import needed
from resnet_ft.evaluation import scores
from resnet_ft.evaluation.predictions import load_predictions
from resnet_ft.inference.check import AnyModel, checkpoint_file
from resnet_ft.models.checkpoint import load_checkpoint, tensors_digest
from resnet_ft.notebook import as_unicode
from resnet_ft.remote import masked
from resnet_ft.training.run import Run

_SPLITS = {"validation": "evaluation.csv", "test": "evaluation_test.csv"}
_MARKUP = {ord(mark): f"\\{mark}" for mark in "\\`*_{}[]<>&#|~$!:@"} | {10: " ", 13: " "}


def model_card(model: AnyModel) -> Path:
    """Write model_card.md beside a checkpoint, with Hugging Face's metadata; returns its path.

    `model` is the folder of a run or a checkpoint file. The card says what is known: classes, data,
    scores with intervals (those that notebook 4 saved, if they are of these weights) and
    calibration. Add what nobody else knows, such as a license; another call writes it anew.
    """
    hub, file = needed("huggingface_hub", "hub"), checkpoint_file(model)
    checkpoint, run = load_checkpoint(file), Run(file.parent)
    config: Any = run.config if (run.folder / "config.json").exists() else {}
    weights = tensors_digest(checkpoint.state_dict)[:16]
    tables = {split: run.folder / name for split, name in _SPLITS.items()}
    found = {split: load_predictions(file) for split, file in tables.items() if file.exists()}
    found = {split: one for split, one in found.items() if one.weights == weights}
    last = [*found.values()][-1] if found else None
    calibration = checkpoint.calibration or {}
    source = masked(config.get("data_source") or "")
    name, dataset = as_unicode(run.folder.absolute().name), as_unicode(Path(source).name)
    kinds = "image-classification", "imagefolder", dataset or "images", "accuracy"
    about = hub.ModelCardData(
        model_name=name if found else None,
        library_name="resnet_ft",
        pipeline_tag="image-classification",
        tags=[one for one in (checkpoint.arch, "fine-tuned") if one],
        datasets=[source.removeprefix("hf:")] if source.startswith("hf:") else None,
        metrics=["accuracy"] if found else None,
        eval_results=[
            hub.EvalResult(*kinds, round(one.accuracy, 4), dataset_split=split)
            for split, one in found.items()
        ]
        or None,
    )
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=lambda value: str(value).translate(_MARKUP),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(share="{:.1%}".format)
    text = page.get_template("card.md").render(
        name=name,
        dataset=dataset,
        arch=checkpoint.arch,
        classes=checkpoint.class_names(),
        size=(checkpoint.preprocessing or {}).get("image_size"),
        training=config.get("training") or {},
        splits=scores.accuracy_summary(found).reset_index(names="split").to_dict("records"),
        scores=[] if last is None else scores.class_scores(last).reset_index().to_dict("records"),
        confused=[] if last is None else scores.confused_pairs(last)[:3].to_dict("records"),
        calibration=calibration if calibration.get("weights") == weights else None,
    )
    card = as_unicode(f"---\n{about.to_yaml()}\n---\n\n{text}")
    run.write("model_card.md", lambda path: path.write_text(card, "utf-8"))
    return run.folder / "model_card.md"
