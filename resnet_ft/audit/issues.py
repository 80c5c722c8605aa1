"""The issues that an audit knows: how serious each is, what it means, and what to do."""

import pandas as pd

# Error: left out of training, or the scores are not to be trusted. Warning: worth a look.
# Info: the library deals with it.
_LEFT_OUT = "Training leaves the file out: replace or remove it."
MEANINGS = {
    "refused": ("error", "Training refuses this data set until it is put right."),
    "no readable image": ("error", "Training refuses a class without images: add some."),
    "leakage": ("error", "The score rewards memory: remove the copy from one of the splits."),
    "label conflict": ("error", "One picture, two labels: keep the right one, remove the other."),
    "unreadable": ("error", _LEFT_OUT),
    "empty file": ("error", _LEFT_OUT),
    "not an image": ("error", _LEFT_OUT),
    "truncated": ("error", _LEFT_OUT),
    "decompression bomb": ("error", "Too many pixels to be decoded, so it is left out: shrink it."),
    "duplicate": ("warning", "Counts twice in its class: remove the copy."),
    "blank": ("warning", "Hardly anything to see: remove it."),
    "very dark": ("warning", "Look whether the subject can be seen, or remove it."),
    "very bright": ("warning", "Look whether the subject can be seen, or remove it."),
    "blurred": ("warning", "Look whether the subject can be recognised, or remove it."),
    "tiny": ("warning", "Enlarged more than four times for the network: find a larger original."),
    "extreme aspect ratio": ("warning", "The network sees only a part of it: crop it yourself."),
    "few images": ("warning", "Too few to learn the class from, or to score it: add some."),
    "class imbalance": ("warning", "Less than a fifth of the largest class: add images to it."),
    "class in one split": ("warning", "Learnt but never scored: add validation images of it."),
    "outside of a class": ("warning", "Not used: move it into the folder of its class."),
    "unread format": ("warning", "Not used: convert it to JPEG or PNG."),
    "wrong extension": ("info", "Read by its content: other tools may trip over its name."),
    "rotated by EXIF": ("info", "Turned upright when it is read: other tools may not do so."),
    "animated": ("info", "Only its first frame is used."),
    "transparent": ("info", "Laid on white."),
    "CMYK": ("info", "Converted to RGB; colours for print may look a little different."),
    "more than 8 bits": ("info", "Scaled to 8 bits."),
    "grey among colour": ("info", "Used as RGB: check that it is not one class that is grey."),
    "junk": ("info", "Not used: made by a system, or hidden."),
    "other file": ("info", "Not used: no image by its name."),
}


def issue_table(findings: list[tuple[str, str, str]]) -> pd.DataFrame:
    """Findings (path, issue, detail) as a table with their `severity`, the serious ones first."""
    table = pd.DataFrame(findings, columns=["path", "issue", "detail"], dtype=object)
    table["severity"] = [MEANINGS[issue][0] for issue in table["issue"]]
    order = {issue: place for place, issue in enumerate(MEANINGS)}
    table = table.sort_values("issue", key=lambda issues: issues.map(order), kind="stable")
    return table[["path", "issue", "severity", "detail"]].reset_index(drop=True)


def summarise(issues: pd.DataFrame) -> pd.DataFrame:
    """A row an issue that was found: `issue`, `severity`, `count` and `meaning`."""
    counts = issues["issue"].value_counts()
    rows = [
        (issue, severity, int(counts[issue]), meaning)
        for issue, (severity, meaning) in MEANINGS.items()
        if issue in counts
    ]
    return pd.DataFrame(rows, columns=["issue", "severity", "count", "meaning"])
