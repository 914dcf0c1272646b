"""Named training settings as data: change one with `dataclasses.replace`, save it with `to_json`."""

import dataclasses
import json
import math
from typing import Literal, get_args

Part = Literal["vision_tower", "projector", "newline", "language_model", "head"]
PARTS: tuple[Part, ...] = get_args(Part)
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Quantization = Literal["nf4"]
RateSchedule = Literal["cosine", "linear", "constant"]
Prompt = Literal["chat", "plain", "completion"]
PROMPTS: tuple[Prompt, ...] = get_args(Prompt)
CanvasTurns = Literal["last", "all"]
Measure = Literal["loss", "exact_match"]

# The linear layers of the language model, and none of the vision tower's, whose names partly are the same.
LANGUAGE_LAYERS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def _at_least(least: float, name: str, value: float) -> None:
    if not value >= least:  # also NaN, which JSON can hold
        raise ValueError(f"{name}={value}; pass at least {least}")


def _one_of(choices: tuple[str, ...], name: str, value: object) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose {' or '.join(map(repr, choices))}")


def check_noise(block_noise: int | None, sparse_noise: int | None, complementary: bool, holes: float) -> None:
    """Refuse settings of the noise that contradict each other.

    Args:
        block_noise: see `Recipe`, as the others.
        sparse_noise: the same.
        complementary: the same.
        holes: the same.

    Raises:
        ValueError: if a number is below 1, `holes` is no share of blocks, or more than one says what is hidden.
    """
    given = {"block_noise": block_noise, "sparse_noise": sparse_noise}
    for name, value in given.items():
        if value is not None:
            _at_least(1, name, value)
    asked = [f"{name}={value}" for name, value in {**given, "complementary": complementary}.items() if value]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} say what is hidden; choose one of them")
    if not 0 <= holes <= 1:
        raise ValueError(f"holes={holes}; a share is from 0 to 1")
    if holes and block_noise is None:
        raise ValueError(f"holes={holes} of answers that are hidden in blocks; pass block_noise=8 as well, or holes=0")


def check_chat_share(prompt: str, chat_share: float) -> None:
    """Refuse a share of chats that is none, or where there is nothing else but chats, or no questions.

    Args:
        prompt: see `Recipe`, as the other.
        chat_share: the same.

    Raises:
        ValueError: if it is no share, or other than 0 where the prompt is not "completion".
    """
    if not 0 <= chat_share <= 1:
        raise ValueError(f"chat_share={chat_share}; a share is from 0 to 1")
    if chat_share and prompt != "completion":
        raise ValueError(
            f'chat_share={chat_share} is the share of chats among completions; pass prompt="completion" as well, '
            "or chat_share=0"
        )


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA, arXiv:2106.09685) beside frozen linear layers.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank, or by alpha / sqrt(rank) with `rslora`.
        dropout: on what goes into the adapter.
        targets: a regular expression that the full name of a linear layer has to match.
        rslora: scale by the square root (arXiv:2312.03732), for high ranks.
        dora: learn magnitudes apart from directions (DoRA, arXiv:2402.09353); slower.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = LANGUAGE_LAYERS
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        _at_least(1, "lora.rank", self.rank)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout}; it is a share: pass 0 or more, and less than 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"lora.alpha={self.alpha}; the update is scaled by it: pass a number above 0")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model is fine-tuned, but for the model and the data.

    Attributes:
        name: what it is called on the command line.
        description: what it is for, in a sentence.
        trains: the parts whose parameters are trained themselves: "vision_tower", "projector", "newline" (the
            embedding that ends a row of patches), "language_model" and "head". All others are frozen.
        lora: adapters beside frozen layers; what they adapt cannot be in `trains` at the same time.
        quantization: "nf4" to hold the frozen language model in four bits (QLoRA, arXiv:2305.14314: double
            quantisation, computed in the precision of training); tower, projector and head are left as they are.
        learning_rate: peak of the schedule.
        vision_learning_rate: that of the vision tower; the same by default.
        schedule: how the rate goes down after the warm-up.
        warmup_ratio: share of the steps in which the rate rises linearly.
        weight_decay: of AdamW, on matrices only.
        max_grad_norm: gradients are scaled down to this norm.
        epochs: how often the data are gone through.
        max_steps: optimiser steps, in place of epochs.
        global_batch_size: samples of an optimiser step, over all devices.
        device_batch_size: samples a device holds at a time; the rest of a step is accumulated.
        max_length: tokens of a sample with its pictures, or of a packed row; longer samples lose their end.
        precision: "bf16" and "fp16" compute in half precision; what is trained is kept in float32. "auto" takes bf16
            where a GPU has it, and fp32 on a CPU.
        gradient_checkpointing: compute activations again on the way back: a fifth of the memory for a third more time.
        compile: compile the layers of tower and language model; takes a while at first, and a C++ compiler.
        prompt: "chat", or without any template "plain" for pictures with captions, as in the paper's first stage, or
            "completion" for questions with answers; see `bare_prompts`.
        chat_share: of completions, share of the samples that are chats all the same; `answers_only` and
            `answer_canvas` are for these.
        image_separator: what stands between a picture and the text after it. The official training has a line feed
            there, which the official inference leaves out; the recipes of ours train what is asked afterwards.
        answers_only: learn the assistant's words and their ends, and nothing else; officially headers are learned too.
        answer_canvas: fill answers up with learned end tokens to a multiple of so many tokens, as `generate` writes
            them, or of one of several numbers; see `Collator`.
        canvas_turns: which answers are filled up, the "last" one or "all"; see `Collator`.
        block_noise: hide answers as `generate` meets them with this block length; the official training, and we by
            default, hide any of their tokens.
        holes: share of the answers longer than a block that get holes with it, in every three tokens.
        sparse_noise: of every so many tokens of an answer hide one, or all but one; see `noise.hide_sparsely`.
        train_on_padding: learn padding, as the official training does.
        conversation_mask: let no turn see a later one.
        complementary: two views per sample, which together hide every token once.
        packing: several samples in a row, none in view of another.
        group_by_length: batches of samples of similar length.
        checkpoint_every: steps between checkpoints, each with an evaluation if there are held-out data; by default
            there are ten in a run.
        keep_checkpoints: how many of the latest stay, beside the best.
        eval_answers: held-out samples that are answered by generation in an evaluation, for exact match.
        best_by: what makes a checkpoint the best one, which is what a run ends with: "loss" or "exact_match" on
            held-out data.
        patience: evaluations without a better one before a run stops; none stops it by default.
        seed: of all draws.
        data: what the paper trained on, for information.
    """

    name: str
    description: str
    trains: tuple[Part, ...] = ()
    lora: Lora | None = None
    quantization: Quantization | None = None
    learning_rate: float = 1e-5
    vision_learning_rate: float | None = None
    schedule: RateSchedule = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    epochs: float = 1.0
    max_steps: int | None = None
    global_batch_size: int = 16
    device_batch_size: int = 1
    max_length: int = 8192
    precision: Precision = "auto"
    gradient_checkpointing: bool = True
    compile: bool = False
    prompt: Prompt = "chat"
    chat_share: float = 0.0
    image_separator: str = ""
    answers_only: bool = True
    answer_canvas: int | tuple[int, ...] | None = 64
    canvas_turns: CanvasTurns = "last"
    block_noise: int | None = None
    holes: float = 0.0
    sparse_noise: int | None = None
    train_on_padding: bool = False
    conversation_mask: bool = False
    complementary: bool = False
    packing: bool = False
    group_by_length: bool = False
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    eval_answers: int = 64
    best_by: Measure = "loss"
    patience: int | None = None
    seed: int = 0
    data: str = ""

    def __post_init__(self) -> None:
        self._check_words()
        self._check_counts()
        self._check_rates()
        self._check_parts()
        self._check_batches()

    def _check_counts(self) -> None:
        for name in ("global_batch_size", "device_batch_size", "max_length", "keep_checkpoints"):
            _at_least(1, name, getattr(self, name))
        for name in ("max_steps", "checkpoint_every", "patience"):
            if getattr(self, name) is not None:
                _at_least(1, name, getattr(self, name))
        _at_least(0, "eval_answers", self.eval_answers)
        if self.answer_canvas is not None:
            canvases = self.answer_canvas if isinstance(self.answer_canvas, tuple) else (self.answer_canvas,)
            _at_least(1, "answer_canvas", min(canvases, default=0))

    def _check_rates(self) -> None:
        _at_least(0, "weight_decay", self.weight_decay)
        for name in ("learning_rate", "vision_learning_rate", "epochs", "max_grad_norm"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name}={value}; pass more than 0")
        for name in ("learning_rate", "vision_learning_rate", "epochs", "weight_decay"):  # no norm is too large
            if getattr(self, name) == math.inf:
                raise ValueError(f"{name}=inf; pass a finite number")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio={self.warmup_ratio}; it is a share of the steps: pass 0 to 1")

    def _check_words(self) -> None:
        """Whoever writes a recipe in Python is not told by its types."""
        for part in self.trains:
            _one_of(PARTS, "trains", part)
        _one_of(get_args(RateSchedule), "schedule", self.schedule)
        _one_of(get_args(Precision), "precision", self.precision)
        _one_of(PROMPTS, "prompt", self.prompt)
        _one_of(get_args(CanvasTurns), "canvas_turns", self.canvas_turns)
        _one_of(get_args(Measure), "best_by", self.best_by)
        if self.quantization is not None:
            _one_of(get_args(Quantization), "quantization", self.quantization)

    def _check_parts(self) -> None:
        if not self.trains and self.lora is None:
            raise ValueError(
                f"the recipe {self.name!r} trains nothing: trains=() and lora=None; give parts "
                f"({', '.join(PARTS)}) or adapters"
            )
        if self.lora is not None and (both := {"language_model", "newline"} & set(self.trains)):
            raise ValueError(
                f"trains={list(self.trains)} and lora were both given; an adapter holds whole modules besides its "
                f"own weights, but not {' and '.join(sorted(both))}: leave them out, or train without lora"
            )
        if self.quantization is not None and self.lora is None:
            raise ValueError(
                f"quantization={self.quantization!r} without lora: what is held in four bits cannot be trained; give "
                "adapters, or quantization=null"
            )
        if self.quantization is not None and self.precision == "fp32":
            raise ValueError('quantization="nf4" computes in half precision; pass precision="bf16" or "fp16"')

    def _check_batches(self) -> None:
        if self.global_batch_size % self.device_batch_size:
            fitting = self.global_batch_size // self.device_batch_size * self.device_batch_size
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of device_batch_size="
                f"{self.device_batch_size}; pass global_batch_size={fitting or self.device_batch_size}"
            )
        if self.packing and self.train_on_padding:
            raise ValueError("packing=True leaves no padding for train_on_padding=True; choose one of them")
        if self.answer_canvas is not None and self.train_on_padding:
            raise ValueError(
                f"answer_canvas={self.answer_canvas} and train_on_padding=True both learn what comes after an answer; "
                "pass answer_canvas=null, or train_on_padding=false"
            )
        if self.canvas_turns == "all" and self.answer_canvas is None:
            raise ValueError(
                'canvas_turns="all" without a canvas; pass answer_canvas=8 as well, or canvas_turns="last"'
            )
        check_noise(self.block_noise, self.sparse_noise, self.complementary, self.holes)
        check_chat_share(self.prompt, self.chat_share)
        if self.prompt != "chat" and self.answers_only and not self.chat_share:
            raise ValueError(f'prompt="{self.prompt}" has no messages for answers_only=True; pass answers_only=false')
        if self.prompt == "plain" and self.answer_canvas is not None:
            raise ValueError(
                f'prompt="plain" is never asked, which answer_canvas={self.answer_canvas} is for; pass '
                "answer_canvas=null"
            )
        if self.prompt != "chat" and self.eval_answers and not self.chat_share:
            raise ValueError(f'prompt="{self.prompt}" asks no chat; pass eval_answers=0, not {self.eval_answers}')
        if self.best_by == "exact_match" and not self.eval_answers:
            raise ValueError('best_by="exact_match" needs answers to compare; pass eval_answers=64')

    def to_json(self) -> str:
        """The recipe as JSON, for `recipe.json` beside the weights."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


_STAGE = Recipe(
    name="stage2a",
    description="The paper's visual instruction tuning on single pictures.",
    trains=PARTS,
    learning_rate=1e-5,
    vision_learning_rate=2e-6,
    global_batch_size=256,
    precision="bf16",
    image_separator="\n",
    answers_only=False,
    answer_canvas=None,
    train_on_padding=True,
    data="MAmmoTH-VL, 10M single-image samples",
)
_LORA = Recipe(
    name="lora",
    description="Adapters in the language model, and the projector: the place to start.",
    trains=("projector",),
    lora=Lora(),
    learning_rate=1e-4,
    epochs=3.0,
)

# LLaDA-V, arXiv:2505.16933, section 3.2 and appendix: cosine, warm-up 0.03, no weight decay, one epoch each.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _LORA,
        dataclasses.replace(
            _LORA,
            name="qlora",
            description="As lora, with the frozen language model in four bits: for one small card.",
            quantization="nf4",
        ),
        Recipe(
            name="full",
            description="All parameters, for domains far from what the model knows.",
            trains=PARTS,
            learning_rate=1e-5,
            vision_learning_rate=2e-6,
            global_batch_size=64,
        ),
        Recipe(
            name="projector",
            description="The projector alone, for another vision tower or language model.",
            trains=("projector",),
            learning_rate=1e-3,
            global_batch_size=64,
        ),
        dataclasses.replace(
            _STAGE,
            name="stage1",
            description="The paper's alignment of the projector on captions.",
            trains=("projector",),
            learning_rate=1e-3,
            vision_learning_rate=None,
            global_batch_size=64,
            prompt="plain",
            eval_answers=0,
            data="LLaVA-Pretrain, 558K captions",
        ),
        _STAGE,
        dataclasses.replace(
            _STAGE,
            name="stage2b",
            description="The paper's tuning on several pictures and videos.",
            max_length=16_384,
            data="MAmmoTH-VL, 2M samples of several images or up to 32 frames",
        ),
        dataclasses.replace(
            _STAGE,
            name="stage3a",
            description="The paper's tuning on answers with reasoning.",
            data="VisualWebInstruct, 900K samples",
        ),
        dataclasses.replace(
            _STAGE,
            name="stage3b",
            description="The paper's balance of reasoned and direct answers, by /think and /no_think.",
            max_length=16_384,
            data="a mix of the data of stage2b and stage3a, with /think and /no_think tags",
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Args:
        name: such as "lora".

    Returns:
        The recipe.

    Raises:
        ValueError: listing the names, if there is none.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
