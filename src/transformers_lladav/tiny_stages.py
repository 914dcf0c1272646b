"""The paper's training in miniature: its stages as recipes, what each learns from, and the command's loop over them.

    tower      the vision tower learns to see, in place of SigLIP2's own training
    words      the language model learns the suite's words, in place of LLaDA's own training: from the same questions
               about pictures that are described in words
    joined     the tower of the one with the language model of the other
    stage1     the projector alone, on captions
    stage2     everything, on questions about one picture
    stage2b    questions about two pictures as well
    stage3     answers with and without reasoning, told apart by /think and /no_think; the paper's 3a and 3b at once

arXiv:2505.16933, section 3.2. Every stage is a run in a folder of its own; one that was interrupted goes on, and a
finished one is passed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from . import suite
from .files import new_folder
from .modeling_lladav import LladaVForMaskedDiffusion
from .processing_lladav import LladaVProcessor
from .publishing import save_checkpoint
from .recipes import Recipe
from .run_settings import RUN, RunSettings, is_finished
from .splits import SUITE_VERSION
from .tiny_model import TinySizes, build_model, build_processor
from .tiny_tower import PatchPictures, fit_projector
from .train import Outcome, Run, TrainingData
from .train_tower import train_tower

_TINY = Recipe(
    name="stage2",
    description="Questions about one picture.",
    trains=("vision_tower", "projector", "newline", "language_model", "head"),
    learning_rate=1e-3,
    vision_learning_rate=1e-4,
    weight_decay=0.01,
    global_batch_size=32,
    device_batch_size=32,
    max_length=320,
    packing=True,
    precision="fp32",
    gradient_checkpointing=False,
    answer_canvas=8,
    canvas_turns="all",
    block_noise=8,
    keep_checkpoints=1,
    eval_answers=0,
)


def _stage(name: str, description: str, steps: int, **changes: Any) -> Recipe:
    return Recipe(**{**vars(_TINY), "name": name, "description": description, "max_steps": steps, **changes})


@dataclass(frozen=True)
class TinyStage:
    """A stage: recipe and data.

    Attributes:
        recipe: how it trains.
        families: how often each family of pictures is drawn, relative to the others.
        turns: questions of a sample.
        seed: of the samples' draws.
        first: index of the first sample in the train split; no two stages share a picture.
        words: whether pictures are described in words.
        captions: whether samples are captions.
        reasoned: share of samples with /think and /no_think.
    """

    recipe: Recipe
    families: dict[str, float] = field(default_factory=dict)
    turns: int = 5
    first: int = 0
    words: bool = False
    captions: bool = False
    reasoned: float = 0.0


PRETRAINING: tuple[TinyStage, ...] = (
    TinyStage(
        _stage(
            "tower", "The vision tower learns to see, in place of SigLIP2's own training.", 4000,
            trains=("vision_tower",), learning_rate=1.5e-3, vision_learning_rate=None, global_batch_size=64,
            device_batch_size=64,
        ),
        first=1_000_000_000,
    ),
    TinyStage(
        _stage(
            "words", "The language model learns the words, in place of LLaDA's own training.", 1500,
            trains=("language_model", "head"), learning_rate=1.5e-3,
            vision_learning_rate=None,
        ),
        families={"scene": 6.0, "sign": 1.0, "chart": 2.0, "change": 1.0},
        first=500_000_000,
        words=True,
        reasoned=0.1,
    ),
)  # fmt: skip
STAGES: tuple[TinyStage, ...] = (
    TinyStage(
        _stage(
            "stage1", "The projector alone, on captions.", 1000, trains=("projector", "newline"),
            learning_rate=2e-3, vision_learning_rate=None, prompt="plain", answers_only=False, packing=False,
            answer_canvas=None, canvas_turns="last", block_noise=None,
        ),
        families={"scene": 2.0, "sign": 1.0, "chart": 1.0},
        first=400_000_000,
        captions=True,
    ),
    TinyStage(
        _stage("stage2", "Questions about one picture.", 6000),
        families={"scene": 5.0, "sign": 2.5, "chart": 2.0},
    ),
    TinyStage(
        _stage("stage2b", "Questions about one and two pictures.", 2000, learning_rate=6e-4),
        families={"scene": 4.0, "sign": 2.0, "chart": 2.0, "change": 3.0},
        first=100_000_000,
    ),
    TinyStage(
        _stage("stage3", "Answers with and without reasoning.", 2000, learning_rate=4e-4, canvas_turns="last",
               answer_canvas=32),
        families={"scene": 5.0, "sign": 2.0, "chart": 2.0, "change": 1.5},
        first=200_000_000,
        reasoned=0.4,
    ),
)  # fmt: skip


class StageSamples(Sequence[dict[str, Any]]):
    """The samples of a stage, made when they are asked for.

    Args:
        stage: what they are of.
        size: how many there are.
    """

    def __init__(self, stage: TinyStage, size: int) -> None:
        self.stage, self.size = stage, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self.size:
            raise IndexError(f"number={number} is outside of {self.size} samples")
        stage, index = self.stage, self.stage.first + number
        dialogue = suite.training_dialogue(index, stage.families, stage.turns, reasoned=stage.reasoned)
        if stage.captions:
            question = suite.long_answer(dialogue.world)
            messages = suite.chat(dialogue.pictures, [("", question.answer)])
        elif stage.words:
            messages = suite.chat([], suite.described(dialogue, index))
        else:
            messages = dialogue.messages
        return {"messages": messages, "source": f"{stage.recipe.name} sample {index}"}


def train_stages(
    folder: Path,
    sizes: TinySizes | None = None,
    pretraining: Sequence[TinyStage] = PRETRAINING,
    stages: Sequence[TinyStage] = STAGES,
    until: int | None = None,
    on_stage: Callable[[TinyStage], dict[str, Any]] | None = None,
    workers: int = 1,
) -> list[Outcome]:
    """Train the bundled checkpoint from nothing, or go on with it.

    Args:
        folder: of the runs; `start` in it is the model before training, and every stage has a folder of its name.
        sizes: of the model.
        pretraining: what tower and language model learn each for itself.
        stages: what the joined model learns, in order.
        until: go through so many of all of them; to the end by default.
        on_stage: is told when a stage begins, and gives what `Run.train` takes to report.
        workers: processes that draw pictures.

    Returns:
        The stages' outcomes; the last one is an interrupted one if a signal came.
    """
    source = folder / "start"
    if not source.is_dir():
        sizes = TinySizes() if sizes is None else sizes
        processor = build_processor(sizes)
        with new_folder(source) as scratch:
            save_checkpoint(build_model(sizes, processor), processor, scratch)
    outcomes: list[Outcome] = []
    for stage in (*pretraining, *stages)[:until]:
        if stage in stages and source == folder / "start":
            source = _join(folder, [outcome.product for outcome in outcomes])
        report = {} if on_stage is None else on_stage(stage)
        outcomes.append(_train(stage, source, folder / stage.recipe.name, workers, report))
        if outcomes[-1].product is None:
            break
        if stage in stages:
            source = outcomes[-1].product
    return outcomes


def next_stage(folder: Path) -> int:
    """How many stages are done.

    Args:
        folder: of the runs.

    Returns:
        The number of the first one that is not, counted from 0 over pre-training and stages.
    """
    folders = [folder / stage.recipe.name for stage in (*PRETRAINING, *STAGES)]
    return next(
        (i for i, path in enumerate(folders) if not (path / RUN).is_file() or not is_finished(path)), len(folders)
    )


def _train(stage: TinyStage, source: Path, output: Path, workers: int, report: dict[str, Any]) -> Outcome:
    data = f"suite, version {SUITE_VERSION}"
    settings = RunSettings(str(source), data, output, workers=workers, report_to="none")
    if stage.recipe.trains == ("vision_tower",):
        return train_tower(settings, stage.recipe, stage.first, **report)
    assert stage.recipe.max_steps is not None
    count = stage.recipe.max_steps * stage.recipe.global_batch_size
    made = TrainingData(StageSamples(stage, count), [], [], {"samples": count})
    return Run(settings, stage.recipe, data=made).train(**report)


def _join(folder: Path, products: Sequence[Path | None]) -> Path:
    """Put a trained tower and a trained language model together, with a projector that fits the tower."""
    joined = folder / "joined"
    if joined.is_dir():
        return joined
    tower, words = (LladaVForMaskedDiffusion.from_pretrained(product, dtype=torch.float32) for product in products)
    words.model.vision_tower.load_state_dict(tower.model.vision_tower.state_dict())
    processor = LladaVProcessor.from_pretrained(folder / "start")
    vision = words.config.vision_config
    pictures = PatchPictures(processor.image_processor, vision.image_size // vision.patch_size, 0, 512, "validation")
    torch.manual_seed(0)
    fit_projector(words, next(iter(DataLoader(pictures, len(pictures))))["pixel_values"])
    with new_folder(joined) as scratch:
        save_checkpoint(words, processor, scratch)
    return joined
