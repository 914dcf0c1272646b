"""Ways in which a checkpoint folder can be broken, each with what must be said about it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"


class Corruption(NamedTuple):
    """One way to break a folder in the official layout, cut into two files.

    Attributes:
        name: what it is called.
        breaks: does it.
        message: part of every report about it.
    """

    name: str
    breaks: Callable[[Path], None]
    message: str


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def change_shard(folder, change, number=1):
    """Rewrite a weight file; `number` counts from 0."""
    file = shards(folder)[number]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def truncate(folder):
    file = shards(folder)[0]
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)


def damage_header(folder):
    with shards(folder)[0].open("r+b") as handle:
        handle.write(b"\xff" * 16)


def wrong_shape(folder):
    change_shard(folder, lambda tensors: tensors.update({"model.mm_projector.0.bias": torch.zeros(33)}))


def not_a_number(folder):
    def change(tensors):
        tensors["model.mm_projector.0.bias"] = torch.full_like(tensors["model.mm_projector.0.bias"], 2.0)
        tensors["model.mm_projector.0.bias"][3:5] = torch.tensor([float("nan"), float("-inf")])

    change_shard(folder, change)


def missing_tensor(folder):
    change_shard(folder, lambda tensors: tensors.pop("model.mm_projector.2.bias"))


def extra_tensor(folder):
    change_shard(folder, lambda tensors: tensors.update({"model.mm_projector.4.weight": torch.zeros(2, 3)}))


def tensor_in_two_files(folder):
    twice = load_file(shards(folder)[0])["model.image_newline"]
    change_shard(folder, lambda tensors: tensors.update({"model.image_newline": twice}))


def integers(folder):
    newline = torch.zeros(32, dtype=torch.int8)
    change_shard(folder, lambda tensors: tensors.update({"model.image_newline": newline}), number=0)


def rename_shard(folder):
    shards(folder)[1].rename(folder / "model-00003-of-00003.safetensors")


def remove_shard(folder):
    shards(folder)[1].unlink()


def remove_shard_and_index(folder):
    shards(folder)[0].unlink()
    (folder / INDEX).unlink()


def swap_shards(folder):
    first, second = shards(folder)
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def leave_the_folder(folder):
    change_index(folder, lambda index: index["weight_map"].update({"lm_head.weight": "../../secret.safetensors"}))


def index_without_map(folder):
    (folder / INDEX).write_text('{"metadata": {}}')


def index_of_rubbish(folder):
    (folder / INDEX).write_text("{" * 10)


def add_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def only_pickles(folder):
    for file in shards(folder):
        file.rename(file.with_suffix(".bin"))


CORRUPTIONS = (
    Corruption("truncated shard", truncate, "model-00001-of-00002.safetensors is truncated or damaged"),
    Corruption("damaged header", damage_header, "model-00001-of-00002.safetensors is truncated or damaged"),
    Corruption("wrong shape", wrong_shape, "model.mm_projector.0.bias in model-00002-of-00002.safetensors is [33]"),
    Corruption("NaN", not_a_number, "model.mm_projector.0.bias in model-00002-of-00002.safetensors holds 2 NaN"),
    Corruption("missing tensor", missing_tensor, "missing tensor: model.multi_modal_projector.linear_2.bias [32]"),
    Corruption("extra tensor", extra_tensor, "unexpected tensor: model.mm_projector.4.weight in model-00002-of"),
    Corruption("tensor in two files", tensor_in_two_files, "model.image_newline is in model-00001-of-00002.safe"),
    Corruption("integers", integers, "model.image_newline in model-00001-of-00002.safetensors is I8; supported: BF16"),
    Corruption("renamed shard", rename_shard, "model-00002-of-00002.safetensors is missing, but model.safe"),
    Corruption("missing shard", remove_shard, "model-00002-of-00002.safetensors is missing, but model.safe"),
    Corruption("no index, no shard", remove_shard_and_index, "model-00001-of-00002.safetensors is missing"),
    Corruption("swapped shards", swap_shards, "lm_head.weight should be in model-00002-of-00002.safetensors by mod"),
    Corruption("path in index", leave_the_folder, "names '../../secret.safetensors', which is not a file of this fol"),
    Corruption("no weight_map", index_without_map, "model.safetensors.index.json has no weight_map"),
    Corruption("index not JSON", index_of_rubbish, "model.safetensors.index.json cannot be read"),
    Corruption("pickle", add_pickle, "pytorch_model.bin is a pickle, which can run any code when it is opened"),
    Corruption("only pickles", only_pickles, "there are no *.safetensors files"),
)
