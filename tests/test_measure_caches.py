"""The measurement behind the caches: what is compared, what is counted, what the tables say."""

import json

import measure_caches as measure

from transformers_lladav.eval_asking import Answer


def answer(number, given, kind="caption", score=1.0):
    return Answer(0, number, False, str(number), kind, "exact_match", "What?", "a", given, score, 0.5, 4)


def test_every_block_begins_with_the_exact_loop():
    grid = measure.grid()
    assert len(grid) == 24
    for block in measure.BLOCKS:
        first = next(settings for settings in grid if settings["block_length"] == block)
        assert (first["threshold"], first["prompt_refresh_interval"]) == (None, 1)
    dual = [settings for settings in grid if settings.get("use_cache") == "dual"]
    assert [settings["prompt_refresh_interval"] for settings in dual] == [2, 4, 8, None]


def test_figures_are_counted_against_the_exact_answers(bundled):
    once = "a red star at the top left"
    again = ", ".join([once] * 3)
    exact = [answer(0, once), answer(1, once), answer(2, "two", "count"), answer(3, "one", "count")]
    other = [answer(0, once), answer(1, again, score=0.0), answer(2, "two", "count"), answer(3, "six", "count", 0.0)]
    found = measure.figures(bundled, other, exact)
    assert found == {
        "questions": 4, "exact_match": 0.5, "agreement": 0.5, "tokens_per_forward": 0.5, "captions": 2,
        "captions_with_repeats": 0.5,
    }  # fmt: skip


def test_a_small_run_has_everything_the_tables_need(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "INTERVALS", (1, 4))
    monkeypatch.setattr(measure, "BLOCKS", (8,))
    output = tmp_path / "caches.json"
    assert measure.main(["--limit", "4", "--questions", "4", "--samples", "1", "--output", str(output)]) == 0
    document = json.loads(output.read_text())
    assert [row["preset"] for row in document["speeds"]] == list(measure.SPEEDS)
    exact, balanced, *_ = document["speeds"]
    assert exact["all"]["agreement"] == 1.0
    assert exact["all"]["questions"] == sum(split["questions"] for split in exact["splits"].values()) == 16
    assert balanced["all"]["tokens_per_forward"] > exact["all"]["tokens_per_forward"]
    assert document["grid"][0]["agreement"] == 1.0
    assert measure.caches_table(document).count("\n| ") == len(measure.SPEEDS)
    assert "16 questions of the suite" in measure.caches_table(document)


def test_the_table_of_intervals_has_a_line_for_each_rule():
    def row(block, threshold, interval, score, **more):
        settings = {"block_length": block, "threshold": threshold, "prompt_refresh_interval": interval, **more}
        return {"settings": settings, "exact_match": score, "questions": 52}

    grid = [
        row(8, None, 1, 0.5),
        row(8, None, None, 0.25),
        row(8, 0.9, 4, 0.75),
        row(8, 0.9, 2, 1.0, use_cache="dual"),
    ]
    lines = measure.intervals_table({"grid": grid}).splitlines()[2:5]
    assert lines == [
        "| 8 | - | prompt | 50.0% |  |  |  | 25.0% |",
        "| 8 | 0.9 | prompt |  |  | 75.0% |  |  |",
        "| 8 | 0.9 | dual |  | 100.0% |  |  |  |",
    ]
