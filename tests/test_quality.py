"""The shipped checkpoint answers as well as the committed evaluation says: a guard for model, processor and loop."""

import json
from pathlib import Path

import pytest

from transformers_lladav import asking
from transformers_lladav.eval_asking import Asking
from transformers_lladav.eval_metrics import wilson_interval
from transformers_lladav.eval_results import ALL
from transformers_lladav.eval_run import fingerprint, measure
from transformers_lladav.eval_tasks import open_tasks
from transformers_lladav.presets_lladav import PRESETS

RESULT_FOLDER = Path(__file__).parent.parent / "model_cards" / "results"
RESULT = json.loads((RESULT_FOLDER / "evaluation.json").read_text())
CACHES = json.loads((RESULT_FOLDER / "caches.json").read_text())
QUESTIONS = 300
# Of thirteen kinds with two dozen questions each, all stay within 99.9 % of what is drawn from the committed shares.
WIDER = 3.3 / 1.96


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


def test_the_committed_evaluation_is_of_the_shipped_checkpoint(assistant):
    assert RESULT["model"]["fingerprint"] == fingerprint(assistant.model, assistant.processor)
    test = next(task for task in RESULT["tasks"] if task["task"] == "suite:test")
    assert test["questions"] >= 2000
    assert all(row["blind_questions"] == row["questions"] for row in test["kinds"])


@pytest.mark.slow
def test_the_shipped_checkpoint_is_as_good_as_the_committed_figures(assistant):
    committed = {row["kind"]: row["score"] for task in RESULT["tasks"][:1] for row in task["kinds"]}
    tasks = open_tasks(["suite:test"], limit=QUESTIONS)
    measured = {row.kind: row for row in measure(assistant.model, assistant.processor, tasks, Asking())}
    assert measured.keys() == committed.keys()
    low, high = wilson_interval(round(measured[ALL].score * QUESTIONS), QUESTIONS)
    assert low <= committed[ALL] <= high, (measured[ALL].score, committed[ALL])
    for kind, row in measured.items():
        low, high = wilson_interval(round(row.score * row.questions), row.questions)
        middle, reach = (low + high) / 2, WIDER * (high - low) / 2
        assert abs(committed[kind] - middle) <= reach, (kind, row.score, committed[kind])


def test_balanced_costs_nothing_that_counts():
    """By the committed figures: half a point at most, and no more repetition in captions; long answers are few."""
    rows = {row["preset"]: row for row in CACHES["speeds"]}
    exact, balanced = rows["exact"], rows["balanced"]
    assert exact["settings"] == {}
    assert balanced["settings"] == PRESETS["balanced"].settings
    assert balanced["all"]["exact_match"] >= exact["all"]["exact_match"] - 0.005
    assert balanced["all"]["captions_with_repeats"] <= exact["all"]["captions_with_repeats"]
    assert balanced["long"]["repeated_tokens"] <= exact["long"]["repeated_tokens"] + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["balanced", "fast"])
def test_a_preset_answers_as_well_as_the_committed_figures(preset, assistant):
    committed = next(row for row in CACHES["speeds"] if row["preset"] == preset)["splits"]["suite:test"]["exact_match"]
    tasks = open_tasks(["suite:test"], limit=QUESTIONS)
    (everything,) = [
        row for row in measure(assistant.model, assistant.processor, tasks, Asking(preset=preset)) if row.kind == ALL
    ]
    low, high = wilson_interval(round(everything.score * QUESTIONS), QUESTIONS)
    assert low <= committed <= high, (everything.score, committed)
