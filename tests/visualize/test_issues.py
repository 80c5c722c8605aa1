import shutil

import pandas as pd

from resnet_ft import show_issues


def test_findings_are_a_table_with_thumbnails(photos):
    shutil.move(photos / "Val/red/0.png", photos / "Val/red/<b>.png")
    (photos / "notes.txt").write_text("junk")
    issues = pd.DataFrame(
        {
            "path": ["Val/red/<b>.png", "notes.txt", "Val/red/gone.png"],
            "issue": ["blurred", "other file", "unreadable"],
            "severity": ["warning", "info", "error"],
            "detail": ["a", "b", "c"],
        }
    )
    html = show_issues(photos, issues)._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 1
    assert "Val/red/&lt;b&gt;.png" in html and "<b>.png" not in html
    assert "cannot be shown" in html
    assert html.count("<tr>") == 4
    assert "tex2jax_ignore mathjax_ignore" in html  # "$5 $6" is no formula
    assert str(show_issues(photos, issues)).count("\n") == 3  # where no HTML is shown
    assert "2 of 3 findings" in show_issues(photos, issues, num_issues=2)._repr_html_()


def test_without_findings_a_sentence_says_so(tmp_path):
    issues = pd.DataFrame(columns=["path", "issue", "severity", "detail"])
    assert repr(show_issues(tmp_path, issues)) == "The audit has found nothing."


def test_long_paths_are_cut_in_the_middle_and_whole_in_a_tooltip(photos):
    path = "Train/red/" + "a" * 60 + "<end>.png"
    issues = pd.DataFrame(
        {"path": [path], "issue": ["blurred"], "severity": ["warning"], "detail": [""]}
    )
    html = show_issues(photos, issues)._repr_html_()
    assert "title='Train/red/" + "a" * 60 + "&lt;end&gt;.png'" in html
    assert ">Train/red/aaaaaaaaaaaaa…aaaaaaaaaaaaaaa&lt;end&gt;.png<" in html
    assert html.startswith("<div style='overflow-x:auto'><table")  # scrolls on a phone
