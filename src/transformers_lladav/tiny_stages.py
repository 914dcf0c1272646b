"""The paper's training in miniature: its stages as recipes, what each learns from, and the loop over them.

    tower      the vision tower learns to see, in place of SigLIP2's own training
    stage1     the language model learns to look things up in what the tower sees
    stage1b    the same when it is asked, in completions: questions and answers without a chat around them
    stage1c    looking up what stands next to something, from texts again
    stage1d    all kinds of question about one picture, most in completions and a third in chats
    stage1e    the same, with more of what takes longer: signs, charts, answers that say everything
    stage1f    the same, with more of what takes two looks: relations, counts, comparisons
    stage2     the same in chats, the tower included
    stage2b    questions about two pictures as well
    stage3     answers with and without reasoning, told apart by /think and /no_think; the paper's 3a and 3b at once

arXiv:2505.16933, section 3.2. There, stage 1 trains the projector alone, since LLaDA-8B has long learned to look up
what stands in its context. Ours is new to everything: with the projector it trains the language model, to look up one
thing about a shape by the others. First nothing but that, and in one form: a model that has not learned it so learns
which answers are frequent, in this stage and all that follow, and does not look. Then the four simplest kinds of
question, many about each picture and close to their answers, then relations, as lookups from texts, then all kinds of
question, with a chat around a third of them: what is learned in the short form is then at once there in the long one,
where it would have to be learned anew later. The texts stay all along, they are forgotten otherwise. As long as
several questions are asked at once, none sees a later one: each then looks like the last one, which is what `generate`
answers.

Every stage is a run in a folder of its own; one that was interrupted goes on, and a finished one is passed over.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import suite
from .files import new_folder
from .processes import training_processes
from .publishing import save_checkpoint
from .recipes import PARTS, Recipe
from .run_records import read_record
from .run_settings import RUN, RunSettings, is_finished
from .splits import SUITE_VERSION
from .tiny_model import TinySizes, build_model, build_processor
from .train import Outcome, Run, TrainingData
from .train_tower import train_tower

# Answers are written on canvases of any length, which must not tell how long they are; the last stage has most of them
# on the one that `generate` takes by default.
CANVASES = (8, 8, 8, 8, 8, 8, 16, 48)
# The rate goes to 0 in the last stages alone: those before them are followed by something else to learn.
_TINY = Recipe(
    name="stage2",
    description="Questions about one picture.",
    trains=PARTS,
    learning_rate=7e-4,
    vision_learning_rate=7e-5,
    schedule="constant",
    weight_decay=0.01,
    global_batch_size=16,
    max_length=320,
    packing=True,
    precision="fp32",
    gradient_checkpointing=False,
    answer_canvas=CANVASES,
    canvas_turns="all",
    block_noise=8,
    holes=0.6,
    keep_checkpoints=1,
    eval_answers=0,
)


# No chat, and the tower as it is.
_BARE: dict[str, Any] = {
    "trains": tuple(part for part in PARTS if part != "vision_tower"), "vision_learning_rate": None,
    "answers_only": False, "answer_canvas": None, "canvas_turns": "last",
}  # fmt: skip
_TEXTS: dict[str, Any] = {**_BARE, "prompt": "plain", "block_noise": None, "holes": 0.0, "sparse_noise": 3}
_COMPLETIONS: dict[str, Any] = {**_BARE, "prompt": "completion", "conversation_mask": True}
_WITH_CHATS: dict[str, Any] = {
    **_COMPLETIONS, "chat_share": 0.35, "answers_only": True, "answer_canvas": CANVASES, "canvas_turns": "all",
    "max_length": 448,
}  # fmt: skip

# Kinds of question, those that take two looks most often.
_TWO_LOOKS = {
    "colour": 1.0, "shape": 1.0, "position": 2.0, "relation": 8.0, "existence": 3.0, "count": 4.0, "comparison": 3.0,
    "dialogue": 2.0,
}  # fmt: skip
# As many that can be answered after a listing.
_LISTED = {**_TWO_LOOKS, "count": 12.0, "comparison": 4.0, "caption": 2.0}


def _stage(name: str, description: str, steps: int, **changes: Any) -> Recipe:
    return Recipe(**{**vars(_TINY), "name": name, "description": description, "max_steps": steps, **changes})


@dataclass(frozen=True)
class TinyStage:
    """A stage: recipe and data.

    Attributes:
        recipe: how it trains.
        families: how often each family of pictures is drawn, relative to the others.
        turns: questions of a sample.
        first: index of the first sample in the train split; no two stages share a picture.
        texts: shares of samples that are a text of a kind, see `suite.training_text`.
        kinds: how often scenes are asked each kind of question, and nothing else; everything by default.
        reasoned: share of samples with /think and /no_think.
    """

    recipe: Recipe
    families: dict[str, float] = field(default_factory=dict)
    turns: int = 5
    first: int = 0
    texts: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, float] | None = None
    reasoned: float = 0.0

    @property
    def is_of_tower(self) -> bool:
        """Whether the tower learns by itself, from patches."""
        return self.recipe.trains == ("vision_tower",)


STAGES: tuple[TinyStage, ...] = (
    TinyStage(
        _stage(
            "tower", "The vision tower learns to see, in place of SigLIP2's own training.", 4000,
            trains=("vision_tower",), learning_rate=1.5e-3, vision_learning_rate=None, schedule="cosine",
            global_batch_size=64,
        ),
        first=1_000_000_000,
    ),
    TinyStage(
        _stage(
            "stage1", "The language model learns to look things up in what the tower sees.", 1500, **_TEXTS,
        ),
        families={"scene": 1.0},
        first=400_000_000,
        texts={"facts": 1.0},
    ),
    TinyStage(
        _stage(
            "stage1b", "Looking things up when asked.", 1500, **_COMPLETIONS, holes=1.0,
        ),
        families={"scene": 1.0},
        turns=16,
        first=500_000_000,
        texts={"facts": 0.2},
        kinds={"colour": 1.0, "shape": 1.0, "position": 1.0, "existence": 1.0},
    ),
    TinyStage(
        _stage(
            "stage1c", "Looking up what stands next to something.", 1500, **_TEXTS,
        ),
        families={"scene": 1.0},
        first=1_100_000_000,
        texts={"facts": 0.2, "relations": 0.8},
    ),
    TinyStage(
        _stage(
            "stage1d", "All kinds of question about one picture.", 2500, **_WITH_CHATS,
        ),
        families={"scene": 6.0, "sign": 1.5, "chart": 2.0},
        turns=10,
        first=600_000_000,
        texts={"facts": 0.05, "relations": 0.15, "whole": 0.1},
    ),
    TinyStage(
        _stage(
            "stage1e", "More of what takes longer: signs, charts, long answers.", 3000, **_WITH_CHATS,
        ),
        families={"scene": 5.0, "sign": 2.5, "chart": 2.5},
        turns=10,
        first=300_000_000,
        texts={"facts": 0.05, "relations": 0.15, "whole": 0.2},
    ),
    TinyStage(
        _stage(
            "stage1f", "More of what takes two looks: relations, counts, comparisons.", 4500, **_WITH_CHATS,
        ),
        families={"scene": 7.0, "sign": 1.5, "chart": 1.5},
        turns=10,
        first=900_000_000,
        texts={"facts": 0.05, "relations": 0.15, "whole": 0.25},
        kinds=_TWO_LOOKS,
    ),
    TinyStage(
        _stage("stage2", "Questions about one picture, in chats.", 3000, conversation_mask=True, max_length=448),
        families={"scene": 7.0, "sign": 1.5, "chart": 2.0},
        turns=8,
        texts={"facts": 0.05, "relations": 0.05, "whole": 0.25},
        kinds=_TWO_LOOKS,
    ),
    TinyStage(
        _stage("stage2b", "Questions about one and two pictures.", 1500, learning_rate=5e-4, schedule="cosine"),
        families={"scene": 6.0, "sign": 1.0, "chart": 2.0, "change": 2.5},
        first=100_000_000,
        texts={"facts": 0.05, "relations": 0.05, "whole": 0.2},
        kinds=_TWO_LOOKS,
    ),
    TinyStage(
        _stage(
            "stage3", "Answers with and without reasoning.", 2400, learning_rate=5e-4, schedule="cosine",
            answer_canvas=(8, 48, 48), max_length=384,
        ),
        families={"scene": 6.0, "sign": 2.0, "chart": 2.0, "change": 2.0},
        turns=4,
        first=200_000_000,
        texts={"relations": 0.03, "whole": 0.15},
        kinds=_LISTED,
        reasoned=0.5,
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
        rng = random.Random(f"long {index}")
        kinds, shares = [*stage.texts, None], [*stage.texts.values(), 1 - sum(stage.texts.values())]
        text = rng.choices(kinds, shares)[0]
        families = {"scene": 1.0} if text in suite.TEXTS_OF_SCENES else stage.families
        dialogue = suite.training_dialogue(index, families, stage.turns, reasoned=stage.reasoned, kinds=stage.kinds)
        messages = dialogue.messages
        if text is not None:
            messages = suite.chat(dialogue.pictures, [suite.training_text(text, dialogue.world, rng)])
        return {"messages": messages, "source": f"{stage.recipe.name} sample {index}"}


def train_stages(
    folder: Path,
    sizes: TinySizes | None = None,
    stages: Sequence[TinyStage] = STAGES,
    until: int | None = None,
    on_stage: Callable[[TinyStage], dict[str, Any]] | None = None,
    workers: int = 1,
    compiled: bool = False,
) -> list[Outcome]:
    """Train the bundled checkpoint from nothing, or go on with it; under torchrun with all processes together.

    Args:
        folder: of the runs; `start` in it is the model before training, and every stage has a folder of its name.
        sizes: of the model.
        stages: which, in order; each begins with what the one before ended with.
        until: go through so many of them; to the end by default.
        on_stage: is told when a stage begins, and gives what `Run.train` takes to report; in every process.
        workers: processes that draw pictures.
        compiled: compile the layers in stages that begin now, the tower's left out.

    Returns:
        The stages' outcomes; the last one is an interrupted one if a signal came.
    """
    source = folder / "start"
    with training_processes().main_process_first():
        if not source.is_dir():
            sizes = TinySizes() if sizes is None else sizes
            processor = build_processor(sizes)
            with new_folder(source) as scratch:
                save_checkpoint(build_model(sizes, processor), processor, scratch)
    outcomes: list[Outcome] = []
    for stage in stages[:until]:
        report = {} if on_stage is None else on_stage(stage)
        output = folder / stage.recipe.name
        if not stage.is_of_tower and _is_compiled(output, compiled):
            stage = replace(stage, recipe=replace(stage.recipe, compile=True))
        outcomes.append(_train(stage, source, output, workers, report))
        if outcomes[-1].product is None:
            break
        source = outcomes[-1].product
    return outcomes


def next_stage(folder: Path) -> int:
    """How many stages are done.

    Args:
        folder: of the runs.

    Returns:
        The number of the first one that is not, from 0.
    """
    done = [
        (folder / stage.recipe.name / RUN).is_file() and is_finished(folder / stage.recipe.name) for stage in STAGES
    ]
    return done.index(False) if False in done else len(done)


def _is_compiled(output: Path, wanted: bool) -> bool:
    """Whether a stage compiles its layers: one that has begun stays as it is."""
    if not (output / RUN).is_file():
        return wanted
    return bool(read_record(output / RUN)["recipe"]["compile"])


def _train(stage: TinyStage, source: Path, output: Path, workers: int, report: dict[str, Any]) -> Outcome:
    data = f"suite, version {SUITE_VERSION}"
    settings = RunSettings(str(source), data, output, workers=workers, report_to="none")
    together = stage.recipe.global_batch_size // training_processes(settings.device).num_processes
    stage = replace(stage, recipe=replace(stage.recipe, device_batch_size=together))
    if stage.is_of_tower:
        return train_tower(settings, stage.recipe, stage.first, **report)
    assert stage.recipe.max_steps is not None
    count = stage.recipe.max_steps * stage.recipe.global_batch_size
    made = TrainingData(StageSamples(stage, count), [], [], {"samples": count})
    return Run(settings, stage.recipe, data=made).train(**report)
