"""An evaluation as pictures and lists: what is shown is what was answered, and the card shows what is there."""

import json
import shutil
from types import SimpleNamespace

import pytest
import show_evaluation
from PIL import Image

from eval_samples import Knower
from transformers_lladav import BUNDLED_CHECKPOINT, eval_run
from transformers_lladav.cards import SHEETS, render_card
from transformers_lladav.eval_asking import Asking
from transformers_lladav.eval_run import EvalSettings, run_evaluation
from transformers_lladav.eval_tasks import open_tasks

TASKS = ("suite:test", "suite:unseen_pairs")
KINDS = 13
WRONG = "a <b> | c"


@pytest.fixture
def evaluation(bundled, tmp_path, monkeypatch):
    """Two questions of each kind of the test split, all right but for the second of colour and of caption."""
    settings = EvalSettings(
        tmp_path / "out", TASKS, limit=2 * KINDS, device="cpu", how=Asking(), command="lladav eval"
    )
    known = Knower(bundled, open_tasks(TASKS, limit=2 * KINDS))
    monkeypatch.setattr(
        eval_run.asking, "load", lambda *arguments: SimpleNamespace(model=known, processor=bundled.processor)
    )
    run_evaluation(settings)
    path = tmp_path / "out" / "answers.jsonl"
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    for answer in answers:
        answer.update(given=answer["expected"], score=1.0)
    for kind in ("colour", "caption"):
        second = [answer for answer in answers if (answer["task"], answer["kind"]) == (0, kind)][1]
        second.update(given=WRONG, score=0.0)
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return tmp_path / "out"


def test_an_evaluation_is_shown(evaluation, tmp_path):
    card, result = tmp_path / "card", tmp_path / "evaluation.json"
    card.mkdir()
    assert show_evaluation.main([str(evaluation), "--output", str(result), "--card", str(card)]) == 0
    assert sorted(path.name for path in card.iterdir()) == sorted(SHEETS)
    assert json.loads(result.read_text()) == json.loads((evaluation / "result.json").read_text())
    listed = (card / "failures.md").read_text()
    assert "## test: colour (“What colour is the star?”), 1 of 2" in listed
    assert "), 0 of 2" in listed
    assert listed.count(r"| a &lt;b> \| c |") == 2
    columns, width = show_evaluation.COLUMNS, show_evaluation.TILE
    with Image.open(card / "suite.png") as every, Image.open(card / "failures.png") as wrong:
        assert every.width > columns * width
        assert wrong.height < every.height  # two answers and not twenty-six


def test_other_folders_are_refused(tmp_path, capsys):
    assert show_evaluation.main([str(tmp_path)]) == 1
    assert "holds no finished evaluation; run: lladav eval --blind" in capsys.readouterr().err
    (tmp_path / "result.json").write_text('{"tasks": [{"task": "mine.jsonl"}]}')
    assert show_evaluation.main([str(tmp_path)]) == 1
    assert "evaluates other tasks than the suite" in capsys.readouterr().err


def test_the_card_shows_sheets_that_are_there(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(BUNDLED_CHECKPOINT, folder)
    assert all(f"]({name})" in render_card(folder).content for name in SHEETS)
    (folder / SHEETS[0]).unlink()
    assert not any(f"]({name})" in render_card(folder).content for name in SHEETS)
