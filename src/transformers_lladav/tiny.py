"""The bundled checkpoint: a LLaDA-V of a million parameters for the world of `scenes`, built from nothing.

Everything here is data for the model's own forward: a tokenizer trained on the exact texts, batches whose noise is
drawn outside (`loss_weights`), and parts put together into a model and a processor.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from . import scenes
from .chat_template_lladav import build_chat_template
from .configuration_lladav import LladaVConfig
from .diffusion_lladav import IGNORE_INDEX
from .generation_configuration_lladav import LladaVGenerationConfig
from .image_processing_lladav import LladaVImageProcessor
from .modeling_lladav import LladaVForMaskedDiffusion
from .processing_lladav import LladaVProcessor
from .recipes import TinyRecipe

SYSTEM_PROMPT = "Look at the picture."
SPECIAL_TOKENS = (
    "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
BLOCK_LENGTH = 8
CANVAS = 32
# Where in the training split the pictures of the tower's own steps begin.
CELL_SCENES = 1_000_000_000
# Short answers are mostly trained on one block and sometimes on more, as they are met in generation.
SHORT_CANVASES = (8, 8, 16, 32)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on every wording of `scenes`; special tokens have LLaDA's names.

    Returns:
        A tokenizer of a few hundred tokens that pads with `<|endoftext|>`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    roles = ["system\n\n", "user\n\n", "assistant\n\n", SYSTEM_PROMPT]
    tokenizer.train_from_iterator([*scenes.all_texts(), *roles * 50], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|eot_id|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        extra_special_tokens=["<|start_header_id|>", "<|end_header_id|>"],
        clean_up_tokenization_spaces=False,
    )


def build_processor(recipe: TinyRecipe) -> LladaVProcessor:
    """The processor of the bundled checkpoint: pictures become one square tile each.

    Args:
        recipe: gives picture and patch size.

    Returns:
        A processor with its own tokenizer and a short system prompt.
    """
    image_processor = LladaVImageProcessor(
        size={"height": recipe.picture_side, "width": recipe.picture_side},
        patch_size=recipe.patch_size,
        image_grid_pinpoints=[],
        tiling="square",
    )
    return LladaVProcessor(image_processor, build_tokenizer(), chat_template=build_chat_template(SYSTEM_PROMPT))


def build_model(recipe: TinyRecipe, processor: LladaVProcessor) -> LladaVForMaskedDiffusion:
    """A freshly initialised model that fits the processor.

    Args:
        recipe: gives the sizes and the seed.
        processor: gives the token ids.

    Returns:
        The model in float32, with the generation settings that the checkpoint ships with.
    """
    tokenizer = processor.tokenizer
    token_id = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
    vocabulary = -(-len(tokenizer) // 8) * 8
    config = LladaVConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": recipe.text_hidden,
            "intermediate_size": recipe.mlp_ratio * recipe.text_hidden,
            "num_hidden_layers": recipe.text_layers,
            "num_attention_heads": recipe.heads,
            "max_position_embeddings": 512,
            # Narrow layers want larger weights than the 0.02 of wide ones: about 1 / sqrt(hidden size).
            "initializer_range": 0.06,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "bos_token_id": token_id["<|startoftext|>"],
            "eos_token_id": token_id["<|eot_id|>"],
            "pad_token_id": token_id["<|endoftext|>"],
        },
        vision_config={
            "hidden_size": recipe.vision_hidden,
            "intermediate_size": recipe.mlp_ratio * recipe.vision_hidden,
            "num_hidden_layers": recipe.vision_layers,
            "num_attention_heads": recipe.heads,
            "image_size": recipe.picture_side,
            "patch_size": recipe.patch_size,
            "vision_use_head": False,
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        mask_token_id=token_id["<|mdm_mask|>"],
        output_vocab_size=processor.image_token_id,
        suppressed_token_ids=[
            token_id[name] for name in ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")
        ],
        image_grid_pinpoints=[],
    )
    torch.manual_seed(recipe.seed)
    model = LladaVForMaskedDiffusion(config)
    model.generation_config = LladaVGenerationConfig(
        max_new_tokens=CANVAS,
        block_length=BLOCK_LENGTH,
        eos_token_id=token_id["<|eot_id|>"],
        pad_token_id=token_id["<|endoftext|>"],
        bos_token_id=token_id["<|startoftext|>"],
        mask_token_id=token_id["<|mdm_mask|>"],
    )
    return model


@dataclass
class TinyBatch:
    """One training step's inputs.

    Attributes:
        pixel_values: (pictures, 3, side, side).
        picture_of: (samples,), which picture each sample is about.
        input_ids: (samples, length), already noised, padded on the left.
        attention_mask: (samples, length).
        labels: (samples, length), -100 where nothing is hidden.
        loss_weights: (samples, length), summing to 1 per sample.
    """

    pixel_values: torch.Tensor
    picture_of: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    loss_weights: torch.Tensor

    def to(self, device: torch.device) -> "TinyBatch":
        """The batch on another device."""
        return TinyBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class TinyStream:
    """The training data: step number to batch, the same on every run.

    Args:
        recipe: what is trained.
        processor: tokenises and prepares pictures.
    """

    def __init__(self, recipe: TinyRecipe, processor: LladaVProcessor) -> None:
        self.recipe, self.processor = recipe, processor
        tokenizer = processor.tokenizer
        self.end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
        self.mask = tokenizer.convert_tokens_to_ids("<|mdm_mask|>")
        self.pad = tokenizer.pad_token_id
        self.prompt_ids = lru_cache(maxsize=None)(self._prompt_ids)
        self.answer_ids = lru_cache(maxsize=4096)(self._answer_ids)

    def _prompt_ids(self, question: str) -> tuple[int, ...]:
        """The chat up to the assistant's header, the picture expanded to its placeholders."""
        processor = self.processor
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        picture = (self.recipe.picture_side // self.recipe.patch_size) ** 2 + 1
        text = text.replace(processor.image_token, processor.image_token * picture)
        return tuple(processor.tokenizer(text, add_special_tokens=False).input_ids)

    def _answer_ids(self, answer: str) -> tuple[int, ...]:
        ids = self.processor.tokenizer(answer, add_special_tokens=False).input_ids
        if len(ids) >= CANVAS:
            raise ValueError(f"the answer {answer!r} has {len(ids)} tokens; the canvas holds {CANVAS - 1} and an end")
        return tuple(ids)

    def batch(self, step: int) -> TinyBatch:
        """Draw the batch of a step.

        Args:
            step: number of the step; everything drawn is a function of it and the recipe's seed.

        Returns:
            The batch, on the CPU.
        """
        recipe = self.recipe
        rng = random.Random(f"{recipe.seed}/{step}")
        kind = self._kind_of_step(step)
        first = step * recipe.scenes_per_step
        drawn = [scenes.make_scene("train", first + i) for i in range(recipe.scenes_per_step)]
        pictures = [scenes.render(scene, recipe.picture_side) for scene in drawn]
        asked = [self._questions(scene, kind, rng) for scene in drawn]
        picture_of = [index for index, questions in enumerate(asked) for _ in questions]
        flat = [question for questions in asked for question in questions]
        short = kind == "questions"
        canvas = rng.choice(SHORT_CANVASES) if short else CANVAS
        rows = [self._row(question, canvas, rng) for question in flat]
        pixels = self.processor.image_processor([[p] for p in pictures], return_tensors="pt").pixel_values
        return TinyBatch(pixels, torch.tensor(picture_of), *self._collate(rows))

    def cells(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw pictures with what each of their cells shows, for the tower's own steps.

        Args:
            step: number of the step.

        Returns:
            (pictures, 3, side, side) pixels, and (pictures, 4, 2) indices of colour and shape per cell in reading
            order, 0 where the cell is empty.
        """
        count = self.recipe.scenes_per_step * 2
        drawn = [scenes.make_scene("train", CELL_SCENES + step * count + i) for i in range(count)]
        pictures = [[scenes.render(scene, self.recipe.picture_side)] for scene in drawn]
        labels = torch.zeros(count, len(scenes.PLACES), 2, dtype=torch.long)
        for index, scene in enumerate(drawn):
            for item in scene.objects:
                cell = item.row * 2 + item.column
                labels[index, cell, 0] = list(scenes.COLOURS).index(item.colour) + 1
                labels[index, cell, 1] = scenes.SHAPES.index(item.shape) + 1
        return self.processor.image_processor(pictures, return_tensors="pt").pixel_values, labels

    def _kind_of_step(self, step: int) -> str:
        if step < self.recipe.tower_steps + self.recipe.dense_steps:
            return "grid"
        if step % self.recipe.long_every == 0:
            return "caption" if (step // self.recipe.long_every) % 2 else "grid"
        return "questions"

    def _questions(self, scene: scenes.Scene, kind: str, rng: random.Random) -> list[scenes.Question]:
        if kind != "questions":
            return [question for question in [scenes.ask(scene, kind, rng)] if question is not None]
        weights = self.recipe.question_weights
        wanted = rng.choices(list(weights), list(weights.values()), k=self.recipe.questions_per_scene)
        asked = [scenes.ask(scene, name, rng) for name in wanted]
        return [question for question in asked if question is not None]

    def _row(
        self, question: scenes.Question, canvas: int, rng: random.Random
    ) -> tuple[list[int], list[int], list[float]]:
        """One sample as (noised ids, labels, weights), the canvas filled up with end tokens."""
        answer = list(self.answer_ids(question.answer))
        prompt = list(self.prompt_ids(question.text))
        target = (answer + [self.end] * canvas)[:canvas]
        worth = [1.0] * (len(answer) + 1) + [self.recipe.padding_weight] * canvas
        hidden = self._hidden(len(answer) // BLOCK_LENGTH + 1, canvas, rng)
        total = sum(value for value, hide in zip(worth, hidden, strict=False) if hide)
        ids = prompt + [self.mask if hide else token for token, hide in zip(target, hidden, strict=True)]
        labels = [IGNORE_INDEX] * len(prompt)
        labels += [token if hide else IGNORE_INDEX for token, hide in zip(target, hidden, strict=True)]
        weights = [0.0] * len(prompt)
        weights += [value / total if hide else 0.0 for value, hide in zip(worth, hidden, strict=False)]
        return ids, labels, weights

    def _hidden(self, blocks: int, canvas: int, rng: random.Random) -> list[bool]:
        """Which canvas positions are masked: some of one of the answer's blocks, and all after it."""
        live = rng.randrange(blocks)
        probability = 1.0 if rng.random() < self.recipe.full_mask_rate else rng.uniform(self.recipe.least_noise, 1.0)
        block = [rng.random() < probability for _ in range(BLOCK_LENGTH)]
        block[rng.randrange(BLOCK_LENGTH)] = True
        after = canvas - (live + 1) * BLOCK_LENGTH
        return [False] * (live * BLOCK_LENGTH) + block + [True] * after

    def _collate(
        self, rows: list[tuple[list[int], list[int], list[float]]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        length = max(len(ids) for ids, _, _ in rows)
        ids = np.full((len(rows), length), self.pad)
        labels = np.full((len(rows), length), IGNORE_INDEX)
        weights = np.zeros((len(rows), length), dtype=np.float32)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for index, (row_ids, row_labels, row_weights) in enumerate(rows):
            start = length - len(row_ids)
            ids[index, start:], labels[index, start:], weights[index, start:] = row_ids, row_labels, row_weights
            mask[index, start:] = 1
        return tuple(torch.from_numpy(array) for array in (ids, mask, labels, weights))  # type: ignore[return-value]


def batch_loss(model: LladaVForMaskedDiffusion, batch: TinyBatch) -> torch.Tensor:
    """The model's own loss on a batch; each picture is encoded once for all its questions.

    Args:
        model: the model.
        batch: one step's inputs.

    Returns:
        The scalar loss.
    """
    sizes = torch.full((len(batch.pixel_values), 2), batch.pixel_values.shape[-1])
    counts = torch.ones(len(batch.pixel_values), dtype=torch.long)
    features = torch.stack(model.model.get_image_features(batch.pixel_values, sizes, counts).pooler_output)
    embeds = model.get_input_embeddings()(batch.input_ids)
    where = (batch.input_ids == model.config.image_token_id)[..., None].expand_as(embeds)
    embeds = embeds.masked_scatter(where, features[batch.picture_of])
    return model(
        inputs_embeds=embeds,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        loss_weights=batch.loss_weights,
    ).loss


class CellReader(torch.nn.Module):
    """Reads colour and shape off each quarter of the tower's map; only used to train the tower, then thrown away.

    Args:
        hidden_size: width of the tower.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.colour = torch.nn.Linear(hidden_size, len(scenes.COLOURS) + 1)
        self.shape = torch.nn.Linear(hidden_size, len(scenes.SHAPES) + 1)

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over cells.

        Args:
            features: (pictures, patches, hidden) of the tower.
            labels: (pictures, 4, 2) indices of colour and shape.

        Returns:
            A scalar.
        """
        pictures, patches, hidden = features.shape
        half = int(patches**0.5) // 2
        grid = features.view(pictures, 2, half, 2, half, hidden).mean(dim=(2, 4)).view(pictures, 4, hidden)
        colours, shapes = self.colour(grid).flatten(0, 1), self.shape(grid).flatten(0, 1)
        cross_entropy = torch.nn.functional.cross_entropy
        return cross_entropy(colours, labels[..., 0].flatten()) + cross_entropy(shapes, labels[..., 1].flatten())


@torch.no_grad()
def fit_projector(model: LladaVForMaskedDiffusion, pixel_values: torch.Tensor) -> None:
    """Start the projector from standardised features: fold their mean and spread into its first layer.

    Args:
        model: its tower is trained, its projector is not.
        pixel_values: (pictures, 3, side, side) to measure on.
    """
    features = model.model.encode_tiles(pixel_values).flatten(0, 1)  # (patches of all pictures, hidden)
    mean, spread = features.mean(dim=0), features.std(dim=0).clamp(min=1e-3)
    projector = model.model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2):
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        torch.nn.init.zeros_(layer.bias)
    projector.linear_1.weight.div_(spread)
    projector.linear_1.bias.copy_(-projector.linear_1.weight @ mean)
