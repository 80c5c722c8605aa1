import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from resnet_ft import DatasetError, ParameterError, Predictions, compare_runs


def run(folder, predicted, labels="aabb" * 5, root="/here/data/Val"):
    """A run's folder with predictions: letters are the classes of 20 images."""
    places = [f"{root}/{label}/{i}.png" for i, label in enumerate(labels)]
    columns = {"path": places, "label": list(labels), "predicted": list(predicted)}
    table = pd.DataFrame(columns).assign(confidence=1.0, loss=0.0)
    probabilities = np.ones((len(labels), 2), np.float32) / 2
    folder.mkdir(parents=True)
    Predictions(table, probabilities, ["a", "b"]).save(folder / "evaluation.csv")
    return folder


def test_mcnemars_test_is_the_exact_one_of_the_images_that_only_one_run_predicts_right(
    tmp_path, capsys
):
    first = run(tmp_path / "first", "bbbb" * 2 + "aabb" * 3)  # 4 of a are wrong
    second = run(tmp_path / "second", "aabb" * 4 + "aaba", root="/elsewhere/Val")  # 1 of b is
    table, classes = compare_runs([first, second])
    assert table.loc["first", ["accuracy", "better", "worse", "p"]].tolist() == [0.8, 0, 0, 1]
    row = table.loc["second"]
    assert row[["accuracy", "better", "worse"]].tolist() == [0.95, 4, 1]
    # 0, 1, 4 or 5 of 5 tosses of a coin: (1 + 5 + 5 + 1) / 32
    assert row["p"] == pytest.approx(12 / 32)
    assert row["from"] < 0.95 < row["to"]
    assert capsys.readouterr().out == (
        "second: +15.0 points beside first, 4 images better and 1 worse; the difference may be "
        "chance (p = 0.38).\n"
    )
    assert classes.columns.tolist() == ["images", "first", "second"]
    assert classes.loc["a"].tolist() == [10, 0.6, 1.0]
    assert classes.loc["b"].tolist() == [10, 1.0, 0.9]
    assert classes.index.tolist() == ["a", "b"]  # the largest change first


def test_a_difference_of_many_images_is_more_than_chance_and_several_runs_make_it_less_so(
    tmp_path, capsys
):
    bad = run(tmp_path / "bad", "bbbb" * 4 + "aabb")  # 8 of 20 are wrong
    good = run(tmp_path / "good", "aabb" * 5)
    once = compare_runs([bad, good])[0].loc["good", "p"]
    assert once == pytest.approx(2 * binom.cdf(0, 8, 0.5))
    assert "that is more than chance (p = 0.0078)" in capsys.readouterr().out
    others = [run(tmp_path / name, "aabb" * 5) for name in "xy"]
    table = compare_runs([bad, good, *others])[0]
    assert table.loc["good", "p"] == pytest.approx(3 * once)
    assert compare_runs([good, others[0]])[0]["p"].tolist() == [1, 1]  # no image differs


def test_runs_on_other_images_or_labels_are_refused_with_the_first_of_them(tmp_path):
    first = run(tmp_path / "first", "aabb" * 5)
    fewer = run(tmp_path / "fewer", "aabb" * 4, "aabb" * 4)
    for pair in ([first, fewer], [fewer, first]):
        with pytest.raises(ParameterError, match=r"different images or labels: 4 .* a/16\.png"):
            compare_runs(pair)
    relabelled = run(tmp_path / "relabelled", "aabb" * 5)
    file = relabelled / "evaluation.csv"
    file.write_text(file.read_text().replace("b/2.png,b", "b/2.png,a"))
    with pytest.raises(ParameterError, match=r"1 differ, such as b/2\.png"):
        compare_runs([first, relabelled])


def test_what_cannot_be_compared_is_refused(tmp_path):
    only = run(tmp_path / "only", "aabb" * 5)
    for runs in ([only], [only, only]):
        with pytest.raises(ParameterError, match="two runs or more"):
            compare_runs(runs)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="notebook 04"):
        compare_runs([only, tmp_path / "empty"])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    folders = [run(tmp_path / parent / "run", "aabb" * 5) for parent in "xy"]
    assert compare_runs(folders)[0].index.tolist() == [str(folder) for folder in folders]
