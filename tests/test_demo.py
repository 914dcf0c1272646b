"""The demo: questions about a scene that training never shows, and a card that shows what is right and wrong."""

from PIL import Image

from transformers_lladav import asking, demo
from transformers_lladav.splits import is_held_out


def test_the_demo_asks_three_kinds_and_a_caption_about_an_unseen_scene():
    scene, rows = demo.run_demo(asking.load(device="cpu"), 5)
    assert is_held_out(scene.layout)
    assert len(rows) == 4
    assert len({row.question for row in rows}) == 4
    assert rows[-1].question == "Describe the picture."
    again = demo.run_demo(asking.load(device="cpu"), 5)[1]
    assert again == rows


def test_the_card_shows_right_answers_green_and_wrong_ones_red():
    picture = Image.new("RGB", (64, 64), (10, 20, 30))
    right = demo.answer_card(picture, [demo.DemoRow("Q?", "red", "red", 1.0)])
    wrong = demo.answer_card(picture, [demo.DemoRow("Q?", "red", "blue", 1.0)])
    colours = [{colour for _, colour in card.getcolors(1 << 20)} for card in (right, wrong)]
    assert demo.RIGHT in colours[0]
    assert demo.WRONG not in colours[0]
    assert demo.WRONG in colours[1]
    assert demo.RIGHT not in colours[1]
    assert right.getpixel((100, 100)) == (10, 20, 30)


def test_long_answers_wrap_and_the_card_grows():
    row = demo.DemoRow("Q?", "red", "a red star at the top left and " * 12, 1.0)
    short = demo.answer_card(Image.new("RGB", (8, 8)), [row])
    long = demo.answer_card(Image.new("RGB", (8, 8)), [row] * 4)
    assert short.width == long.width
    assert long.height > short.height
