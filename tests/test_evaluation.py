import json
from types import SimpleNamespace

import pytest
import torch

from transformers_lladav import scenes
from transformers_lladav.evaluation import Score, evaluate, write_result


class Oracle:
    """Stands in for a model and its processor: knows the answer to each question about each picture."""

    device = torch.device("cpu")

    def __init__(self, examples):
        self.answers = {
            (scenes.render(scene, 64).tobytes(), question.text): question.answer for scene, question in examples
        }
        self.texts = []
        self.tokenizer = SimpleNamespace(batch_decode=lambda rows, skip_special_tokens: [self.texts[i] for i in rows])

    def apply_chat_template(self, chats, **options):
        assert options["add_generation_prompt"]
        keys = [(chat[0]["content"][0]["image"].tobytes(), chat[0]["content"][1]["text"]) for chat in chats]
        return _Inputs(keys=keys)

    def generate(self, keys, return_dict_in_generate):
        start = len(self.texts)
        self.texts += [f" {self.answers.get(key, 'no idea')} " for key in keys]
        rates = torch.full((len(keys),), 2.0)
        return SimpleNamespace(answers=range(start, len(self.texts)), tokens_per_forward=rates)


class _Inputs(dict):
    def to(self, device):
        return self


def test_an_oracle_gets_everything_and_wrong_pictures_only_by_coincidence():
    examples = scenes.evaluation_set("validation", 35)
    oracle = Oracle(examples)
    scores = evaluate(oracle, oracle, "validation", 35, batch_size=8)
    assert [score.kind for score in scores] == list(scenes.EVALUATED_KINDS)
    assert all(score.questions == score.correct == 5 for score in scores)
    assert all(score.tokens_per_forward == 2.0 for score in scores)
    # The oracle answers about the picture it is shown: right only where that question has the same answer there.
    questions = [question for _, question in examples]
    for score in scores:
        asked = [index for index, question in enumerate(questions) if question.kind == score.kind]
        pairs = [(questions[index], questions[(index + len(scores)) % len(questions)]) for index in asked]
        assert score.blind_correct == sum((own.text, own.answer) == (other.text, other.answer) for own, other in pairs)


def test_wrong_answers_are_counted_as_wrong():
    examples = scenes.evaluation_set("validation", 35)
    oracle = Oracle(examples)
    first_colour = next(key for key, value in oracle.answers.items() if value in scenes.COLOURS)
    oracle.answers[first_colour] = "mauve"
    scores = {score.kind: score for score in evaluate(oracle, oracle, "validation", 35, blind=False)}
    assert scores["colour"].correct == 4
    assert scores["count"].correct == 5


def test_the_interval_is_wilsons():
    # 90 of 100: the textbook interval is 0.8256 .. 0.9448.
    low, high = Score("colour", 100, 90, 0, 1.0).interval
    assert low == pytest.approx(0.8256, abs=1e-4)
    assert high == pytest.approx(0.9448, abs=1e-4)


def test_a_result_file_holds_what_is_needed_to_repeat_it(tmp_path):
    write_result(tmp_path / "e.json", {"test": [Score("count", 4, 3, 1, 1.5)]}, "lladav eval", {"model": "bundled"})
    document = json.loads((tmp_path / "e.json").read_text())
    assert document["command"] == "lladav eval"
    assert document["model"] == "bundled"
    assert document["versions"]["torch"] == torch.__version__
    assert document["splits"]["test"][0]["accuracy"] == 0.75
