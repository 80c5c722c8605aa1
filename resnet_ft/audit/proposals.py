"""What an audit proposes to do about its findings, for a person to change."""

import pandas as pd

_COLUMNS = ["path", "decision", "value", "reason"]
_USED = ("train", "val", "test")  # in this order


def propose_decisions(images: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """A first table of decisions from the `images` and `pairs` of an audit.

    Of a picture in several splits the copies outside the last of them are left out, so that none is
    scored on what an earlier one has taught; of one with two labels all copies are, since one label
    is wrong; of copies that are equal to the byte, all but one. The last images of a class in a
    split are never proposed: there are decisions that a person has to take.
    """
    table = images.set_index("path")
    excluded: dict[str, str] = {}
    for original, copies in pairs.groupby("other", sort=False):
        group = table.loc[[original, *copies["path"]]]
        splits = group["split"].astype(str)
        last = max(splits, key=_USED.index)
        if group["class_name"].astype(str).nunique() > 1:
            excluded |= dict.fromkeys(group.index, "the same picture has two labels")
            continue
        kept = splits.index[splits == last]
        reason = f"the same picture is in {last}: {kept[0]}"
        excluded |= dict.fromkeys(splits.index[splits != last], reason)
        again = kept[group.loc[kept, "content"].duplicated().to_numpy()]
        excluded |= dict.fromkeys(again, f"the same file as {kept[0]}")
    for _, paths in table[table["problem"].isna()].groupby(["split", "class_name"], observed=True):
        if set(paths.index) <= excluded.keys():
            excluded = {path: why for path, why in excluded.items() if path not in paths.index}
    rows = [(path, "exclude", "", reason) for path, reason in sorted(excluded.items())]
    return pd.DataFrame(rows, columns=_COLUMNS)
