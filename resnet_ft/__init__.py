"""Fine-tune a pretrained ResNet on folders of photographs, in five notebooks or from Python.

The names below load when they are first used: `import resnet_ft` itself imports none of torch,
matplotlib and ipywidgets.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "errors": (
        "CheckpointError DatasetError DriveError ImageError ParameterError ResnetFtError "
        "RunError TrainingError WeightsError"
    ),
    "engine": "configure_engine describe_device",
    "staging.drive": ("check_storage disconnect_runtime mount_drive project_root unmount_drive"),
    "data.sample": "make_sample_dataset",
    "data.images": "open_image",
    "data.index": "DatasetIndex held_out_images index_dataset",
    "data.decisions": "apply_decisions decisions_file read_decisions write_decisions",
    "data.transforms": "IMAGENET_MEAN IMAGENET_STD Preprocessing eval_transform train_transform",
    "data.dataset": "ImageDataset",
    "data.loaders": "describe_loaders make_dataloaders",
    "data.batches": "unshuffled",
    "staging.pack": "pack_dataset",
    "staging.stage": "stage_dataset",
    "audit.audit": "Audit audit_dataset",
    "models.build": "architectures build_model",
    "models.preprocessing": "preprocessing_of",
    "models.freezing": "count_parameters freeze freeze_batchnorm unfreeze",
    "models.calibration": "Calibration",
    "models.checkpoint": "Checkpoint load_checkpoint save_checkpoint",
    "features.store": "FeatureDataset",
    "features.precompute": "precompute",
    "evaluation.predictions": "Predictions evaluate load_predictions",
    "evaluation.calibration": (
        "calibration_scores coverage_at coverage_curve fit_temperature reliability"
    ),
    "evaluation.scores": (
        "find_label_errors accuracy_interval accuracy_summary class_scores confused_pairs "
        "confusion_matrix "
        "largest_class_share scored_weights suspect_labels verdict"
    ),
    "evaluation.attention": "grad_cam similar_images",
    "evaluation.comparison": "compare_runs",
    "evaluation.learning_curve": "LearningCurve learning_curve pretrained_features",
    "evaluation.backbones": "compare_backbones",
    "evaluation.advice": "advise",
    "visualize.images": (
        "imshow show_images show_mistakes visualize_model plot_class_means show_class "
        "show_classes show_label_errors show_pairs"
    ),
    "visualize.issues": "show_issues",
    "visualize.attention": "show_attention show_neighbours",
    "visualize.map": "explore_map plot_map",
    "visualize.plots": (
        "plot_class_counts plot_class_scores plot_confused_pairs plot_confusion_matrix "
        "plot_image_sizes"
    ),
    "visualize.calibration": "plot_calibration plot_coverage",
    "training.calibrate": "calibrate",
    "training.evaluate": "evaluate_run",
    "visualize.curves": "plot_histories plot_history plot_learning_curve",
    "training.run": "Run load_run space_of_run",
    "training.state": "StepOutput TrainingState",
    "training.callbacks": "Callback EarlyStop LivePlot ProgressBar Tracker",
    "training.schedule": (
        "PerStep make_optimizer make_scheduler parameter_groups plot_schedule warmup_cosine"
    ),
    "training.budget": "TimeBudget expected_duration plan_epochs",
    "training.averaging": "WeightAverage",
    "training.resume": "Autosave",
    "data.mixing": "MixedLoader balanced_loader class_weights",
    "training.loop": "train_model",
    "training.find_lr": "LRFinder find_lr plan_lr_finder",
    "training.head": "Head fit_head",
    "training.options": "FineTuneOptions check_parameters",
    "training.fine_tune": "fine_tune",
    "training.launch": "train_run launch_training",
    "inference.predictor": "Predictor",
    "inference.export": "export_onnx export_safetensors",
    "inference.check": "compare_exports",
    "inference.prediction": "Prediction",
    "inference.web": "export_web",
    "reporting.page": "report",
    "reporting.card": "model_card",
    "reporting.bundle": "bundle push_to_hub",
    "widgets.browse": "browse_dataset explore_augmentation",
    "widgets.review": "review_dataset review_label_errors",
    "widgets.download": "download_button",
    "widgets.feedback": "judge_predictions",
    "widgets.site": "show_site",
    "widgets.upload": "upload_and_predict",
    "notebook": "percent show_table",
    "choices": "last_choice remember",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
