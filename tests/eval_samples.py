"""What the tests of evaluation share: a user's records, and a model that knows all answers."""

import json
from types import SimpleNamespace

import torch
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow")


def write_records(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_colours(folder, **fields):
    """Four pictures of one colour each, and two questions about each, of which the first needs the picture."""
    records = []
    for number, name in enumerate(COLOURS):
        Image.new("RGB", (24, 24 + 8 * number), name).save(folder / f"{name}.png")
        records += [
            {"image": f"{name}.png", "question": "Which colour is it?", "answer": name, "kind": "colour", **fields},
            {"image": f"{name}.png", "question": "Is it a picture?", "answer": "yes", "kind": "trivial", **fields},
        ]
    return write_records(folder / "colours.jsonl", records)


class Knower:
    """A model that knows the answer to every question of some tasks about the picture it is shown, and no other.

    Attributes:
        batches: how many prompts each call of `generate` had.
        settings: what it was called with, beside the prompts.
    """

    def __init__(self, assistant, tasks):
        self._assistant = assistant
        self._known, self.batches, self.settings = {}, [], []
        for question in (question for task in tasks for question in task.questions):
            inputs = assistant.processor.apply_chat_template(
                [question.messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            self._known[self._keys(**inputs)[0]] = question.accepted[0]

    def __getattr__(self, name):
        return getattr(self._assistant.model, name)

    def _keys(self, input_ids, attention_mask, pixel_values=None, image_tile_counts=None, **others):
        """What each row asks, and the mean colour that it shows; at most one picture each."""
        shown = iter([] if pixel_values is None else pixel_values.split(image_tile_counts.tolist()))
        keys = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            ids = ids[mask.bool()].tolist()
            has_picture = self.config.image_token_id in ids
            colour = tuple(next(shown)[0].mean(dim=(1, 2)).tolist()) if has_picture else None
            keys.append((tuple(ids), colour))
        return keys

    def answer_to(self, key):
        return self._known.get(key, "no idea")

    def generate(self, tokenizer, preset, generator, return_dict_in_generate, **inputs):
        names = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "image_tile_counts")
        prompts = {name: inputs.pop(name) for name in names if name in inputs}
        keys = self._keys(**prompts)
        self.batches.append(len(keys))
        self.settings.append({"preset": preset, "seeds": [item.initial_seed() for item in generator], **inputs})
        texts = [f" {self.answer_to(key)} " for key in keys]
        return SimpleNamespace(
            answers=[torch.tensor(tokenizer(text).input_ids) for text in texts],
            tokens_per_forward=torch.full((len(keys),), 1.5),
            denoising_steps=torch.full((len(keys),), 4),
        )
