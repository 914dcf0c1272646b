"""Compare masked diffusion with an autoregressive twin on the suite, at several data sizes, and two attention masks.

The comparison of LLaDA-V with LLaMA3-V (arXiv:2505.16933, sections 4.2 and 4.3) in miniature, with everything equal
but the objective: both twins start from the same random weights, learn to look things up in what the same frozen
vision tower sees, and are then trained on more and more questions about pictures, with the same samples in the same
order for the same number of steps. Questions and answers follow one another line by line, without a chat template:
with a question close to its answer, small models learn much sooner to look up what it is about. Writes
results/twins.json, from which render_readme.py makes the table and the plot. What is finished stays in a folder, and a
run that was interrupted goes on there.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from circumstances import circumstances
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from transformers_lladav import suite
from transformers_lladav.collation import Collator
from transformers_lladav.diffusion_lladav import IGNORE_INDEX
from transformers_lladav.files import new_folder, write_text
from transformers_lladav.noise import runs
from transformers_lladav.rows import Row
from transformers_lladav.splits import SUITE_VERSION
from transformers_lladav.tiny_model import TinySizes, build_model
from transformers_lladav.tiny_tower import fit_projector
from transformers_lladav.twins import KeptFeatures, Lesson, Twin, fit, without_later_turns, write_greedily

RESULT = Path(__file__).resolve().parent / "results" / "twins.json"
TWINS: tuple[Twin, ...] = ("diffusion", "autoregressive")
GROUPS = (*TWINS, "conversation_mask")
FAMILIES = {"scene": 1.0}
# Those with short answers: one canvas holds any of them, with its end, and its length tells nothing.
KINDS = ("colour", "shape", "position", "existence", "count", "dialogue")
TURNS = 8
CANVAS, BLOCK, MAX_LENGTH = 8, 8, 288
MODES: dict[Twin, dict[str, dict[str, Any]]] = {
    "diffusion": {"one token per pass": {"preset": "exact"}, "threshold 0.9": {"threshold": 0.9}},
    "autoregressive": {"one token per pass": {}},
}
TOGETHER = 50  # questions, or pictures
SAY_EVERY = 100

Say = Callable[[str], None]

# Numbers of the first picture of each kind of sample, in the train split: none is shown twice.
FIRST = {"facts": 700_000_000, "dialogues": 800_000_000}


def sample(kind: str, number: int) -> dict[str, Any]:
    """A sample about a scene.

    Args:
        kind: "facts" for texts that say what is where, "dialogues" for questions about it.
        number: from 0.

    Returns:
        What the collator takes.
    """
    index = FIRST[kind] + number
    dialogue = suite.training_dialogue(index, FAMILIES, TURNS, kinds=dict.fromkeys(KINDS, 1.0))
    messages = dialogue.messages
    if kind == "facts":
        text = suite.training_text("facts", dialogue.world, random.Random(f"long {index}"))
        messages = suite.chat(dialogue.pictures, [text])
    return {"messages": messages, "source": f"{kind} {number}"}


@dataclass(frozen=True)
class Settings:
    """What all arms have in common.

    Attributes:
        text_hidden: width of the language model.
        facts: texts that the bases learn from.
        base_steps: on them.
        steps: on dialogues about pictures.
        batch_size: samples of a step.
        learning_rate: at its highest.
        questions: of the test split, for every arm.
        dialogue_questions: those that follow on another one, for the largest arms of both masks.
    """

    text_hidden: int = 96
    facts: int = 12_000
    base_steps: int = 1500
    steps: int = 500
    batch_size: int = 16
    learning_rate: float = 7e-4
    questions: int = 360
    dialogue_questions: int = 240

    def lesson(self, steps: int) -> Lesson:
        """How a phase of so many steps is trained."""
        return Lesson(steps, self.batch_size, self.learning_rate)


@dataclass(frozen=True)
class Arm:
    """A model that is trained on dialogues.

    Attributes:
        twin: its objective.
        samples: dialogues there are to learn from.
        seed: of their order and of the noise.
        conversation_mask: whether no turn sees a later one.
    """

    twin: Twin
    samples: int
    seed: int
    conversation_mask: bool = False

    @property
    def group(self) -> str:
        """Which of `GROUPS`."""
        return "conversation_mask" if self.conversation_mask else self.twin

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.group}-{self.samples}-{self.seed}"


def plan(sizes: Sequence[int], seeds: int) -> list[Arm]:
    """All arms: both twins at every size, and the conversation mask at the largest.

    Args:
        sizes: numbers of dialogues.
        seeds: how many.

    Returns:
        The arms; a twin's come one after the other.
    """
    arms = [Arm(twin, size, seed) for twin in TWINS for size in sorted(sizes) for seed in range(seeds)]
    return [*arms, *(Arm("diffusion", max(sizes), seed, conversation_mask=True) for seed in range(seeds))]


@dataclass(frozen=True)
class Asked:
    """Questions that are asked together.

    Attributes:
        examples: of the suite.
        inputs: of the model, with features in the place of pixels; padded on the left.
        turns: (prompt,), the turn of each position of the last question.
    """

    examples: list[suite.Example]
    inputs: dict[str, torch.Tensor]
    turns: torch.Tensor


class Workshop:
    """What all arms share: tower, processor, samples and questions, each made when it is first needed.

    Args:
        tower: folder of a checkpoint whose vision tower is trained.
        settings: of the comparison.
        largest: number of dialogues of the largest set; the smaller ones are its beginning.
    """

    def __init__(self, tower: Path, settings: Settings, largest: int) -> None:
        self.settings, self.largest = settings, largest
        self.processor = AutoProcessor.from_pretrained(tower)
        self.tower = AutoModelForImageTextToText.from_pretrained(tower, dtype=torch.float32).model.eval()

    @torch.no_grad()
    def seen(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the tower says about pictures, (pictures, patches, vision hidden)."""
        return torch.cat([self.tower.encode_tiles(part) for part in pixel_values.split(TOGETHER)])

    def untrained(self) -> Any:
        """A twin with random weights, always the same, and a projector that fits the tower's features."""
        vision = self.tower.config.vision_config
        sizes = TinySizes(
            picture_side=vision.image_size, patch_size=vision.patch_size, vision_hidden=vision.hidden_size,
            text_hidden=self.settings.text_hidden,
        )  # fmt: skip
        model = build_model(sizes, self.processor)
        model.generation_config.eos_token_id = self.processor.tokenizer("\n").input_ids  # ends a completion's answer
        model.model.vision_tower = KeptFeatures()
        family = suite.FAMILIES["scene"]
        pictures = [family.pictures(family.make("train", FIRST["facts"] + index)) for index in range(4 * TOGETHER)]
        fit_projector(model, self.seen(self.processor.image_processor(pictures, return_tensors="pt").pixel_values))
        return model

    @cached_property
    def sample_collator(self) -> Collator:
        """How samples become rows: prompts as they are when they are answered, every answer on its canvas."""
        return Collator(
            self.processor, packing=True, max_length=MAX_LENGTH, prompt="completion", answer_canvas=CANVAS,
            canvas_turns="all", block_noise=BLOCK,
        )  # fmt: skip

    @cached_property
    def base_collator(self) -> Collator:
        """How facts become rows: a picture and its text, as in the tiny model's first stage."""
        return Collator(self.processor, packing=True, max_length=MAX_LENGTH, prompt="plain", sparse_noise=3)

    def rows(self, kind: str, count: int) -> list[Row]:
        """The first samples of a kind as clean rows, with features in the place of pixels.

        Args:
            kind: see `sample`.
            count: how many.

        Returns:
            A row for each.

        Raises:
            ValueError: if a sample does not fit.
        """
        rows = []
        collator = self.base_collator if kind == "facts" else self.sample_collator
        for number in range(count):
            row = collator.prepare(sample(kind, number))
            if row is None or len(row) >= MAX_LENGTH:
                raise ValueError(f"{kind} {number} fills all of MAX_LENGTH={MAX_LENGTH} and may be cut; raise it")
            if "pixel_values" in row.media:
                row = replace(row, media={**row.media, "pixel_values": self.seen(row.media["pixel_values"])})
            rows.append(row)
        return rows

    @cached_property
    def facts(self) -> list[Row]:
        """What the bases learn from."""
        return self.rows("facts", self.settings.facts)

    @cached_property
    def dialogues(self) -> list[Row]:
        """The largest set of dialogues."""
        return self.rows("dialogues", self.largest)

    def asked(self, examples: Sequence[suite.Example]) -> list[Asked]:
        """Make model inputs of questions: first ones together, those that follow on others one by one."""
        first = [example for example in examples if len(example.messages) == 1]
        parts = [first[start : start + TOGETHER] for start in range(0, len(first), TOGETHER)]
        parts += [[example] for example in examples if len(example.messages) > 1]
        return [self._asked(part) for part in parts]

    def _asked(self, examples: list[suite.Example]) -> Asked:
        rows = [prompt_of(self.sample_collator, example) for example in examples]
        length = max(map(len, rows))
        inputs = {
            "input_ids": torch.full((len(rows), length), self.sample_collator.ids.padding),
            "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
            **{name: torch.cat([row.media[name] for row in rows]) for name in rows[0].media},
        }
        for number, row in enumerate(rows):
            inputs["input_ids"][number, length - len(row) :] = row.input_ids
            inputs["attention_mask"][number, length - len(row) :] = 1
        inputs["pixel_values"] = self.seen(inputs["pixel_values"])
        return Asked(examples, inputs, rows[-1].turns)

    @cached_property
    def questions(self) -> list[Asked]:
        """Those that every arm is asked."""
        return self.asked(suite.evaluation_set("test", self.settings.questions, KINDS))

    @cached_property
    def dialogue_questions(self) -> list[Asked]:
        """Those that the masks are compared on."""
        return self.asked(suite.evaluation_set("test", self.settings.dialogue_questions, ["dialogue"]))


def prompt_of(collator: Collator, example: suite.Example) -> Row:
    """Make a question a prompt, by cutting the answer off a sample of it.

    Args:
        collator: of completions.
        example: the question.

    Returns:
        A clean row that ends where the answer begins.
    """
    answer = {"role": "assistant", "content": [{"type": "text", "text": example.answer}]}
    row = collator.prepare({"messages": [*example.messages, answer], "source": example.id})
    assert row is not None
    end, _ = runs(row.labels != IGNORE_INDEX)[-1]
    parts = {name: getattr(row, name)[:end] for name in ("input_ids", "labels", "loss_weights", "turns", "worth")}
    return replace(row, **parts)


# A base and an arm


def telling(what: str, steps: int, say: Say) -> Callable[[int, float], None]:
    """A function that says how far a training is.

    Args:
        what: is trained.
        steps: how many there are.
        say: takes a line.

    Returns:
        What `fit` calls after every step.
    """

    def on_step(step: int, loss: float) -> None:
        if step % SAY_EVERY == 0 or step == steps:
            say(f"{what}: step {step:,} of {steps:,}, loss {loss:.3f}")

    return on_step


def mean_of_last(losses: Sequence[float], count: int = SAY_EVERY) -> float:
    """Mean of the last losses.

    Args:
        losses: of all steps.
        count: how many at most.

    Returns:
        The mean.
    """
    return sum(losses[-count:]) / len(losses[-count:])


def train_base(workshop: Workshop, twin: Twin, folder: Path, say: Say) -> None:
    """Teach a twin to look things up in what the tower sees, as its base for dialogues.

    Args:
        workshop: gives samples and settings.
        twin: which.
        folder: to write weights and facts to.
        say: takes a line of progress.
    """
    settings, model, rows = workshop.settings, workshop.untrained(), workshop.facts
    started = time.process_time()
    steps = telling(f"{twin} base", settings.base_steps, say)
    losses = fit(model, workshop.base_collator, rows, twin, settings.lesson(settings.base_steps), steps)
    facts = {"cpu_seconds": time.process_time() - started, "loss": mean_of_last(losses)}
    with new_folder(folder) as scratch:
        save_file(model.state_dict(), scratch / "model.safetensors")
        write_text(scratch / "base.json", json.dumps(facts, indent=1) + "\n")


def train_arm(workshop: Workshop, arm: Arm, base: dict[str, torch.Tensor], say: Say) -> dict[str, Any]:
    """Train and measure an arm.

    Args:
        workshop: gives samples, questions and settings.
        arm: which.
        base: weights to begin with.
        say: takes a line of progress.

    Returns:
        What it gave; seconds are those of training and of answering.
    """
    rows, questions = workshop.dialogues[: arm.samples], {"test": workshop.questions}
    if arm.twin == "diffusion" and arm.samples == workshop.largest:
        questions["dialogues"] = workshop.dialogue_questions
    model = workshop.untrained()
    model.load_state_dict(base)
    collator = replace(workshop.sample_collator, seed=arm.seed, conversation_mask=arm.conversation_mask)
    steps, started = workshop.settings.steps, time.process_time()
    losses = fit(model, collator, rows, arm.twin, workshop.settings.lesson(steps), telling(arm.name, steps, say))
    trained = time.process_time()
    tokenizer = workshop.processor.tokenizer
    answered = {name: evaluate(model.eval(), arm, asked, tokenizer) for name, asked in questions.items()}
    return {
        **asdict(arm),
        "cpu_seconds": {"training": trained - started, "answering": time.process_time() - trained},
        "loss": mean_of_last(losses),
        "answered": answered,
    }


def answers(model: Any, arm: Arm, asked: Asked, settings: dict[str, Any]) -> list[tuple[Any, int]]:
    """Tokens and number of forward passes of each answer.

    Args:
        model: trained for the arm.
        arm: which; a question that follows on others is asked with the mask of its training.
        asked: the questions.
        settings: of `generate`.

    Returns:
        Both, per question.
    """
    if arm.twin == "autoregressive":
        written = write_greedily(model, **asked.inputs, max_new_tokens=CANVAS)
        return [(tokens, len(tokens)) for tokens in written]
    # In a first question there are no later turns to be hidden.
    follows = len(asked.examples[0].messages) > 1
    with without_later_turns(model, asked.turns) if arm.conversation_mask and follows else nullcontext():
        output = model.generate(
            **asked.inputs, max_new_tokens=CANVAS, block_length=BLOCK, return_dict_in_generate=True, **settings
        )
    return list(zip(output.answers, output.denoising_steps.tolist(), strict=True))


def evaluate(model: Any, arm: Arm, asked: Sequence[Asked], tokenizer: Any) -> dict[str, Any]:
    """Exact match and forward passes, in each of the twin's ways to answer.

    Args:
        model: trained for the arm.
        arm: which.
        asked: the questions.
        tokenizer: of the model.

    Returns:
        For each way, in all and by kind: how many questions, right answers and forward passes.
    """
    found: dict[str, Any] = {}
    for mode, settings in MODES[arm.twin].items():
        kinds: dict[str, dict[str, int]] = {}
        for part in asked:
            for example, (tokens, passes) in zip(part.examples, answers(model, arm, part, settings), strict=True):
                counts = kinds.setdefault(example.kind, {"questions": 0, "correct": 0, "passes": 0})
                counts["questions"] += 1
                counts["correct"] += tokenizer.decode(tokens, skip_special_tokens=True).strip() == example.answer
                counts["passes"] += passes
        total = {name: sum(kind[name] for kind in kinds.values()) for name in ("questions", "correct", "passes")}
        found[mode] = {**total, "kinds": kinds}
    return found


# The whole comparison


def check_folder(folder: Path, settings: Settings, tower: Path, largest: int) -> None:
    """Take a folder for a run, or go on in one of the same settings.

    Args:
        folder: where bases and arms are kept.
        settings: of the run.
        tower: folder of the checkpoint with the tower.
        largest: number of dialogues of the largest set.

    Raises:
        ValueError: if another run was made there.
    """
    path = folder / "settings.json"
    with (tower / "model.safetensors").open("rb") as weights:
        fingerprint = hashlib.file_digest(weights, "sha256").hexdigest()
    given = {
        **asdict(settings), "largest": largest, "canvas": CANVAS, "block_length": BLOCK,
        "suite_version": SUITE_VERSION, "tower_sha256": fingerprint,
    }  # fmt: skip
    if not path.exists():
        write_text(path, json.dumps(given, indent=1) + "\n")
    there = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name}={value} and not {there.get(name)}" for name, value in given.items() if there.get(name) != value
    ]
    if changed:
        raise ValueError(f"{folder} holds a run of other settings ({', '.join(changed)}); pass another --folder")


def run(options: argparse.Namespace, say: Say) -> bool:
    """Train and measure what is asked for and not there yet.

    Args:
        options: of the command line.
        say: takes a line of progress.

    Returns:
        Whether every arm of the plan is there now.
    """
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    check_folder(options.folder, settings, options.tower, max(options.sizes))
    arms = plan(options.sizes, options.seeds)
    workshop = Workshop(options.tower, settings, max(options.sizes))
    for arm in arms:
        result = options.folder / "arms" / f"{arm.name}.json"
        if arm.group not in options.arms or result.exists():
            continue
        base = options.folder / f"base-{arm.twin}"
        if not base.is_dir():
            train_base(workshop, arm.twin, base, say)
        row = train_arm(workshop, arm, load_file(base / "model.safetensors"), say)
        write_text(result, json.dumps(row, indent=1) + "\n")
    missing = [arm.name for arm in arms if not (options.folder / "arms" / f"{arm.name}.json").exists()]
    if missing:
        say(f"{len(arms) - len(missing)} of {len(arms)} arms are done; not yet: {', '.join(missing)}")
    return not missing


def document(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Everything that was measured.

    Args:
        options: of the command line.
        arguments: the command line.

    Returns:
        The result document.
    """
    folder = options.folder
    names = [arm.name for arm in plan(options.sizes, options.seeds)]
    weights = load_file(folder / "base-diffusion" / "model.safetensors")
    language_model = sum(
        weight.numel() for name, weight in weights.items() if name.startswith(("model.language_model.", "lm_head."))
    )
    hidden_paths = [
        Path(part).name if index and arguments[index - 1] in ("--tower", "--folder", "--output") else part
        for index, part in enumerate(arguments)
    ]
    return {
        **circumstances("measure_twins.py", hidden_paths, cores=os.cpu_count(), threads=options.threads),
        "settings": json.loads((folder / "settings.json").read_text(encoding="utf-8")),
        "language_model_parameters": language_model,
        "bases": {
            twin: json.loads((folder / f"base-{twin}" / "base.json").read_text(encoding="utf-8")) for twin in TWINS
        },
        "arms": [json.loads((folder / "arms" / f"{name}.json").read_text(encoding="utf-8")) for name in names],
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measure what is not there yet, and write the result file when everything is.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tower", type=Path, required=True, help="checkpoint with a trained vision tower")
    parser.add_argument("--folder", type=Path, required=True, help="where bases and arms are kept as they get done")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all")
    parser.add_argument("--sizes", nargs="+", type=int, default=[125, 500, 2000, 8000], help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each size (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    for field in fields(Settings):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default, help="default: %(default)s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if run(options, Console(stderr=True, highlight=False, soft_wrap=True).print):
        write_text(options.output, json.dumps(document(options, arguments), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
