"""Rows answered: any kind of picture, columns by name, and two actors of ray that do it together."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_lladav import asking, predicting
from transformers_lladav.eval_asking import Asking, Reply
from transformers_lladav.predicting import LladaVPredictor, answer_in_batches
from transformers_lladav.shape_scenes import make_scene, render_scene

SETTINGS = {"max_new_tokens": 16, "block_length": 8, "threshold": 0.9, "device": "cpu"}
QUESTION = "What is at the centre?"


@pytest.fixture(scope="module")
def predictor():
    return LladaVPredictor(**SETTINGS, batch_size=2)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(make_scene("test", number), 96) for number in range(5)]


@pytest.fixture(scope="module")
def expected(predictor, scenes):
    """What each is answered alone."""
    settings = {name: value for name, value in SETTINGS.items() if name != "device"}
    return [asking.ask(predictor.assistant, scene, QUESTION, **settings).text for scene in scenes]


def as_bytes(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "kind", [np.asarray, as_bytes, lambda picture: picture, lambda picture: {"bytes": as_bytes(picture)}],
    ids=["array", "bytes", "PIL", "dictionary"],
)  # fmt: skip
def test_every_kind_of_picture(kind, predictor, scenes, expected):
    batch = {"image": [kind(scene) for scene in scenes], "question": np.array([QUESTION] * 5), "id": [3, 1, 4, 1, 5]}
    answered = predictor(batch)
    assert answered["prediction"].tolist() == expected
    assert len(set(expected)) > 1
    assert answered["id"] is batch["id"]
    assert "prediction" not in batch


def test_paths_stay_in_their_folder(scenes, expected, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number, scene in enumerate(scenes):
        scene.save(tmp_path / "pictures" / f"{number}.png")
    scenes[0].save(tmp_path / "outside.png")
    inside = LladaVPredictor(**SETTINGS, image_folder=tmp_path / "pictures", ask=QUESTION)
    found = inside({"image": ["0.png", str(tmp_path / "pictures" / "1.png"), Path("2.png")]})
    assert found["prediction"].tolist() == expected[:3]
    with pytest.raises(ValueError, match=r"row 1: .*outside"):
        inside({"image": ["0.png", "../outside.png"]})


def test_columns_by_name_and_a_question_for_all(scenes, expected):
    named = LladaVPredictor(**SETTINGS, image="photo", question="q", prediction="said", ask=QUESTION)
    assert named({"photo": scenes[:2]})["said"].tolist() == expected[:2]


def test_rows_without_a_picture(predictor, scenes, expected):
    found = predictor({"image": [None, scenes[1]], "question": ["What colour is the star?", QUESTION]})["prediction"]
    assert found[1] == expected[1]
    assert len(predictor({"question": ["What colour is the star?"]})["prediction"]) == 1


def test_rows_without_a_question_are_asked_the_one_for_all(scenes, expected):
    one_for_all = LladaVPredictor(**SETTINGS, ask=QUESTION)
    found = one_for_all({"image": scenes[:3], "question": np.array([None, float("nan"), QUESTION], dtype=object)})
    assert found["prediction"].tolist() == expected[:3]


def test_sampling_depends_on_the_row_alone(scenes):
    sampling = LladaVPredictor(**SETTINGS, temperature=2.0, seed=1, ask="Describe the picture.", batch_size=3)
    together = sampling({"image": scenes})["prediction"].tolist()
    assert [sampling({"image": [scene]})["prediction"][0] for scene in scenes] == together
    other = LladaVPredictor(**SETTINGS, temperature=2.0, seed=2, ask="Describe the picture.")
    assert other({"image": scenes})["prediction"].tolist() != together


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": [], "prediction": []}, "the rows have a column 'prediction' already; pass prediction=another name"),
        ({"photo": [1]}, "neither a column 'image' nor 'question', but photo; pass image= or question="),
        ({"image": ["a.png"]}, "row 0: the picture 'a.png' is a path; pass image_folder="),
        ({"image": [{"path": "a.png"}]}, "row 0: the picture 'a.png' is a path; pass image_folder="),
        ({"question": ["What?", " "]}, "row 1: the question is empty"),
        ({"image": [b"half a picture"]}, "row 0: "),
        ({"image": [np.zeros((0, 4, 3), np.uint8)]}, "row 0: "),
    ],
)
def test_rows_that_cannot_be_answered_are_refused(batch, message, predictor):
    with pytest.raises(ValueError, match=message):
        predictor(batch)


def test_settings_are_checked_before_the_first_row():
    with pytest.raises(TypeError, match="did you mean 'threshold'"):
        LladaVPredictor(device="cpu", treshold=0.9)


def test_the_longest_are_answered_first_and_come_back_in_order(monkeypatch):
    asked = []

    def write(model, processor, chats, how, seeds):
        asked.append((list(chats), list(seeds)))
        return [Reply(chat.upper(), 1.0, 1) for chat in chats]

    monkeypatch.setattr(predicting, "write", write)
    assistant = asking.Assistant(None, None)
    replies = answer_in_batches(assistant, ["a", "b", "c", "d", "e"], [3, 9, 1, 9, 5], Asking(batch_size=2), range(5))
    assert asked == [(["b", "d"], [1, 3]), (["e", "a"], [4, 0]), (["c"], [2])]
    assert [reply.text for reply in replies] == ["A", "B", "C", "D", "E"]


def test_two_actors_of_ray(scenes, expected):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    try:
        items = [{"number": number, "image": np.asarray(scene)} for number, scene in enumerate(scenes)]
        options = {"fn_constructor_kwargs": {**SETTINGS, "ask": QUESTION}, "concurrency": 2, "num_cpus": 1}
        answered = ray.data.from_items(items, override_num_blocks=4).map_batches(
            LladaVPredictor, batch_size=2, **options
        )
        found = {row["number"]: row["prediction"] for row in answered.take_all()}
    finally:
        ray.shutdown()
    assert [found[number] for number in range(5)] == expected


def test_a_picture_is_not_changed(predictor):
    picture = Image.new("RGBA", (20, 10), (255, 0, 0, 128))
    before = picture.tobytes()
    predictor({"image": [picture]})
    assert picture.tobytes() == before
