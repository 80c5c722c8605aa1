"""What an audit proposes to do about its findings, for a person to change."""

import pandas as pd

from resnet_ft.audit.duplicates import BETWEEN_CLASSES, BETWEEN_SPLITS

_COLUMNS = ["path", "decision", "value", "reason"]


def propose_decisions(images: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """A first table of decisions from the `images` and `pairs` of an audit.

    Of a picture in two splits the copy that is used first is left out, so that no split is scored
    on what an earlier one has taught; of one with two labels both copies are, since one label is
    wrong; of exact copies within a class, all but one.
    """
    split = images.set_index("path")["split"].astype(str)
    excluded = {}
    for pair in pairs.itertuples():
        if pair.relation == BETWEEN_CLASSES:
            excluded |= dict.fromkeys((pair.path, pair.other), "the same picture has two labels")
        elif pair.relation == BETWEEN_SPLITS:
            reason = f"the same picture is in {split[pair.path]}: {pair.path}"
            excluded.setdefault(pair.other, reason)
        elif pair.kind == "exact":
            excluded.setdefault(pair.path, f"the same file as {pair.other}")
    rows = [(path, "exclude", "", reason) for path, reason in sorted(excluded.items())]
    return pd.DataFrame(rows, columns=_COLUMNS)
