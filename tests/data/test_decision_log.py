from resnet_ft.data.decisions import DecisionLog, read_decisions


def test_every_decision_is_on_disk_at_once(tmp_path):
    log = DecisionLog(tmp_path / "d.csv")
    assert not log.file.exists()
    log.decide("a.png", "exclude", reason="blurred")
    log.decide("b.png", "relabel", "red")
    rows = read_decisions(log.file).to_numpy().tolist()
    assert rows == [["a.png", "exclude", "", "blurred"], ["b.png", "relabel", "red", ""]]
    assert DecisionLog(log.file)["b.png"] == ("relabel", "red")


def test_decisions_are_taken_back_one_by_one(tmp_path):
    log = DecisionLog(tmp_path / "d.csv")
    log.decide("a.png", "exclude")
    log.decide("a.png", "keep")
    log.decide("b.png", "keep")
    assert (log.undo(), log["b.png"], log["a.png"]) == ("b.png", ("", ""), ("keep", ""))
    assert (log.undo(), log["a.png"]) == ("a.png", ("exclude", ""))
    assert (log.undo(), log["a.png"]) == ("a.png", ("", ""))
    assert log.undo() is None
    assert read_decisions(log.file).empty


def test_what_others_decided_before_is_kept(tmp_path):
    DecisionLog(tmp_path / "d.csv").decide("a.png", "exclude")
    log = DecisionLog(tmp_path / "d.csv")
    log.decide("b.png", "keep")
    assert log["a.png"] == ("exclude", "")
    log.decide("a.png", "")
    assert read_decisions(log.file)["path"].tolist() == ["b.png"]


def test_two_windows_on_one_file_lose_nothing_of_each_other(tmp_path):
    one, other = DecisionLog(tmp_path / "d.csv"), DecisionLog(tmp_path / "d.csv")
    one.decide("a.png", "keep")
    other.decide("b.png", "exclude")
    one.decide("c.png", "keep")
    assert one.decided() == {"a.png", "b.png", "c.png"}
