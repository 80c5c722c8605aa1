"""The tables of loading and staging: images per second by library, and beside the targets."""

from table import OURS, circumstances, table

_NAMES = {
    OURS: "**resnet_ft**",
    "torchvision": "torchvision (the tutorial)",
    "huggingface": "Hugging Face datasets",
}
_COLUMNS = {
    ("500x375", "first_epoch"): "500x375, first epoch",
    ("500x375", "later_epochs"): "500x375, later epochs",
    ("4000x3000", "first_epoch"): "12 megapixels, first epoch",
    ("4000x3000", "later_epochs"): "12 megapixels, later epochs",
}
# At least so many times the fastest of the others.
_TARGETS = {
    ("500x375", "later_epochs"): 4,
    ("4000x3000", "later_epochs"): 60,
    ("4000x3000", "first_epoch"): 1.7,
}
_STAGING_TARGET = 12


def speed_markdown(results: dict[str, dict]) -> str:
    """Images per second by library, what that is beside the targets, and how it was measured.

    Empty where nothing of it was measured.
    """
    loading, staging = _loading(results), results.get("staging")
    if not loading:
        return ""
    fastest = _fastest(loading)
    libraries = [OURS, *sorted({row["library"] for row in loading} - {OURS})]
    speeds = [
        [_NAMES.get(library, library)] + [_number(fastest.get((library, *key))) for key in _COLUMNS]
        for library in libraries
    ]
    measured = loading + ([staging] if staging else [])
    tables = [
        table(["images per second", *_COLUMNS.values()], speeds),
        table(["beside the fastest other", "measured", "target"], _comparisons(fastest, staging)),
        _conditions(measured),
    ]
    if defaults := results.get("default augmentation"):
        tables += _defaults(defaults)
    return "\n\n".join(tables)


def all_speeds_markdown(results: dict[str, dict]) -> str:
    """Every configuration that was measured."""
    columns = ["data_set", "library", "configuration", "first_epoch", "later_epochs"]
    rows = [[str(row[column]) for column in columns] for row in _loading(results)]
    return table([column.replace("_", " ") for column in columns], rows)


def _loading(results: dict[str, dict]) -> list[dict]:
    return [row for name, row in results.items() if name.startswith("loading / ")]


def _fastest(loading: list[dict]) -> dict[tuple[str, str, str], float]:
    """(library, data set, epoch) -> images per second of the library's fastest configuration."""
    fastest = {}
    for row in loading:
        for epoch in ("first_epoch", "later_epochs"):
            key = (row["library"], row["data_set"], epoch)
            fastest[key] = max(row[epoch], fastest.get(key, 0.0))
    return fastest


def _comparisons(fastest: dict[tuple, float], staging: dict | None) -> list[list[str]]:
    rows = []
    for column, target in _TARGETS.items():
        others = {key[0]: speed for key, speed in fastest.items() if key[1:] == column}
        ours = others.pop(OURS, None)
        if ours and others:
            other = max(others, key=others.get)
            what = f"{_COLUMNS[column]}, beside {_NAMES.get(other, other)}"
            rows.append([what, f"{ours / others[other]:.1f} times", f"at least {target} times"])
    if staging:
        what = "staging from a simulated slow disk, beside `shutil.copytree`"
        rows.append([what, f"{staging['ratio']:.1f} times", f"at least {_STAGING_TARGET} times"])
    return rows


def _defaults(row: dict) -> list[str]:
    """The augmentation that a user gets, beside the mild one and the tutorial's loader."""
    tutorial = max(row["transforms"], row["transforms.v2"])
    rows = [
        ["resnet_ft, light", _number(row["light"]), ""],
        ["resnet_ft, medium (the default)", _number(row["medium"]), ""],
        ["the default beside light", f"{row['medium_to_light']:.2f} times", "at least 0.85 times"],
        ["torchvision, transforms", _number(row["transforms"]), ""],
        ["torchvision, transforms.v2", _number(row["transforms.v2"]), ""],
        [
            "the default beside the faster of torchvision's",
            f"{row['medium'] / tutorial:.1f} times",
            "at least 4 times",
        ],
    ]
    conditions = (
        "*Photographs of 500x375 pixels, later epochs, loaders in turns; torchvision's has the "
        f"same crops, flips and colours. {circumstances([row])}.*"
    )
    return [table(["with colours: images per second", "measured", "target"], rows), conditions]


def _conditions(measured: list[dict]) -> str:
    return (
        "*Batches of 32 normalised float32 images of 224x224 pixels, randomly cropped and flipped, "
        "by two workers, files in the page cache. A first epoch includes building the loaders (and "
        "filling the cache); resnet_ft crops the cached image, whose short side is 256 pixels, the "
        "others the original. Each figure is that of a library's fastest configuration: all are in "
        f"`benchmarks/results/speed.json`. {circumstances(measured)}.*"
    )


def _number(speed: float | None) -> str:
    return "" if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"
