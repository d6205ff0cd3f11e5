"""Progress as figures: what a tally makes of what it is told."""

from layerstore import LayerTally, Quiet, Tally


def told(*calls):
    tally = Tally()
    for what, *arguments in calls:
        if what == "layer":
            tally.layer("a", state=arguments[0], size=100)
        else:
            getattr(tally, what)("a", *arguments)
    return tally


def test_what_was_read_kept_and_found_is_told_apart():
    tally = told(("layer", "staging"), ("advance", 30), ("advance", 10), ("resumed", 20), ("spared", 15))
    assert tally.layers() == {"a": LayerTally("staging", 100, fetched=40, resumed=20, spared=15)}
    assert (tally.layers()["a"].done, tally.layers()["a"].saved) == (75, 35)


def test_a_layer_that_is_ready_is_done_however_little_was_read():
    tally = told(("layer", "staging"), ("advance", 40), ("layer", "staged"))
    assert (tally.layers()["a"].done, tally.layers()["a"].saved) == (100, 60)


def test_what_was_fetched_twice_saves_nothing_and_is_no_more_than_all_of_it():
    layer = told(("layer", "staging"), ("resumed", 50), ("advance", 150)).layers()["a"]
    assert (layer.done, layer.saved, layer.fetched) == (100, 0, 150)


def test_what_another_fetched_meanwhile_counts_until_one_fetches_by_oneself():
    tally = told(("layer", "waiting"), ("awaited", 60))
    assert (tally.layers()["a"].done, tally.layers()["a"].fetched) == (60, 0)
    tally.layer("a", state="staging", size=100)
    tally.resumed("a", 60)
    assert tally.layers()["a"].done == 60


def test_the_total_is_that_of_all_layers_and_ready_when_each_is():
    tally = Tally()
    tally.layer("a", state="present", size=100)
    tally.layer("b", state="staging", size=50)
    tally.advance("b", 50)
    assert (tally.total().state, tally.total().size, tally.total().fetched) == ("staging", 150, 50)
    tally.layer("b", state="staged", size=50)
    assert tally.total().state == "staged"
    json = tally.as_json()
    assert (json["size"], json["fetched"], json["saved"]) == (150, 50, 100)
    assert [(each["diff_id"], each["saved"]) for each in json["layers"]] == [("a", 100), ("b", 0)]


def test_the_totals_saving_is_the_sum_of_the_layers_however_much_of_one_was_fetched_twice():
    tally = Tally()
    tally.layer("a", state="staging", size=100)
    tally.advance("a", 150)
    tally.layer("b", state="present", size=100)
    assert (tally.total().saved, tally.as_json()["saved"], tally.total().done) == (100, 100, 200)


def test_what_is_awaited_is_told_as_data():
    tally = told(("layer", "waiting"), ("awaited", 60))
    assert tally.as_json()["awaited"] == tally.as_json()["layers"][0]["awaited"] == 60


def test_what_is_taken_back_is_taken_back():
    assert told(("layer", "staging"), ("spared", 50), ("spared", -20)).layers()["a"].spared == 30


def test_quiet_hears_all_and_says_nothing():
    quiet = Quiet()
    quiet.layer("a", state="staging", size=1)
    for what in ("advance", "resumed", "spared", "awaited"):
        assert getattr(quiet, what)("a", 1) is None
