"""Fine-tune the bundled checkpoint on pictograms, a world it has never seen, and measure what it learns and keeps.

Draws pictures and a CSV, measures, trains through the public command line as anybody would, measures again. One run
learns from pictograms alone, one from pictograms and replayed scenes, the world of the checkpoint's own training.
Writes results/finetuning.json, from which render_readme.py makes the table and the plot, and a contact sheet.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pictograms
import torch
from circumstances import PACKAGES, circumstances
from PIL import Image

from transformers_lladav import BUNDLED_CHECKPOINT, asking
from transformers_lladav.contact_sheets import SheetRow, contact_sheet
from transformers_lladav.eval_asking import Asking, write
from transformers_lladav.eval_results import ALL, Row
from transformers_lladav.eval_run import measure as measure_tasks
from transformers_lladav.eval_tasks import open_tasks
from transformers_lladav.files import write_text
from transformers_lladav.scene_questions import ASKERS, Question
from transformers_lladav.shape_scenes import make_scene, render_scene
from transformers_lladav.suite import SCENE_WEIGHTS
from transformers_lladav.trainable import PEFT_PREFIX

FOLDER = Path(__file__).resolve().parent
RESULT = FOLDER / "results" / "finetuning.json"
SHEET = FOLDER / "assets" / "pictograms.png"
WEIGHTS = Path(BUNDLED_CHECKPOINT) / "model.safetensors"
# Linear layers of the language model and, other than in the recipe, of the tower, which has seen the suite only.
TARGETS = r".*(language_model|vision_tower)\..*\.(\w+_proj|fc\d)"
# What differs from the recipe "lora". A model of two million parameters wants higher rates than one of eight billions,
# and its head has never been asked for most of its tokens. The canvas is that of the checkpoint's own settings.
SETTINGS = (
    'trains=["projector","head"]',
    "lora.rank=32",
    f"lora.targets={TARGETS}",
    "learning_rate=0.003",
    "warmup_ratio=0.05",
    "max_steps=1000",
    "checkpoint_every=125",
    "global_batch_size=32",
    "device_batch_size=32",
    "max_length=160",
    "answer_canvas=48",
    "gradient_checkpointing=false",
    "eval_answers=200",
    "best_by=exact_match",
)
ARMS = {"pictograms alone": False, "pictograms and scenes": True}
BATCH = 50


@dataclass(frozen=True)
class Asked:
    """A question about a picture.

    Attributes:
        picture: of `pictograms.SIDE` pixels along one side.
        question: with its answer.
    """

    picture: Image.Image
    question: Question


def ask_pictograms(split: str, count: int) -> list[Asked]:
    """One question about each of the first pictures of a split, the kinds in turn.

    Args:
        split: of `pictograms`.
        count: how many.

    Returns:
        The questions; shorter lists are the start of longer ones.
    """
    asked = []
    for index in range(count):
        scene = pictograms.make_scene(split, index)
        rng = random.Random(f"question {split} {index}")
        kinds: dict[str, list[Question]] = {}
        for question in pictograms.questions(scene):
            kinds.setdefault(question.kind, []).append(question)
        # Two numbers on is the next picture with as many pictograms.
        chosen = list(kinds)[index // 2 % len(kinds)]
        asked.append(Asked(pictograms.render(scene), rng.choice(kinds[chosen])))
    return asked


def ask_scenes(count: int) -> list[Asked]:
    """One question about each of the first training scenes, the kinds at random.

    Args:
        count: how many.

    Returns:
        The questions.
    """
    asked: list[Asked] = []
    rng, index = random.Random("replay"), 0
    kinds = [*SCENE_WEIGHTS, "caption"]
    while len(asked) < count:
        scene = make_scene("train", index)
        question = ASKERS[rng.choice(kinds)](scene, rng)
        if question is not None and not question.before:
            asked.append(Asked(render_scene(scene, pictograms.SIDE), question))
        index += 1
    return asked


def write_table(path: Path, asked: Sequence[Asked]) -> None:
    """Write pictures and a CSV that names them, as training data.

    Args:
        path: of the CSV; the pictures go into a folder beside it.
        asked: the rows.
    """
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "question", "answer"])
        for number, item in enumerate(asked):
            name = f"{number:05}.png"
            item.picture.save(pictures / name)
            rows.writerow([f"{pictures.name}/{name}", item.question.text, item.question.answer])


def answers(assistant: asking.Assistant, asked: Sequence[Asked]) -> list[str]:
    """What the model says, with the settings of its checkpoint.

    Args:
        assistant: a loaded checkpoint, with an adapter or without one.
        asked: the questions.

    Returns:
        The answers, in order.
    """
    texts: list[str] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        chats = [[asking.user_message([item.picture], item.question.text)] for item in part]
        replies = write(assistant.model, assistant.processor, chats, Asking(), [0] * len(part))
        texts += [reply.text for reply in replies]
    return texts


def exact_match(asked: Sequence[Asked], texts: Sequence[str]) -> dict[str, Any]:
    """Right answers, in all and by kind of question.

    Args:
        asked: the questions.
        texts: the answers.

    Returns:
        Counts of questions and right answers.
    """
    right = [text == item.question.answer for item, text in zip(asked, texts, strict=True)]
    kinds = list(dict.fromkeys(item.question.kind for item in asked))
    by_kind = {
        kind: [hit for item, hit in zip(asked, right, strict=True) if item.question.kind == kind] for kind in kinds
    }
    return {
        "questions": len(right),
        "correct": sum(right),
        "kinds": {kind: {"questions": len(hits), "correct": sum(hits)} for kind, hits in by_kind.items()},
    }


def total(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of the suite in the form of `exact_match`.

    Args:
        rows: one per kind of question, and one over all.

    Returns:
        Counts of questions and right answers.
    """
    counts = {row.kind: {"questions": row.questions, "correct": round(row.score * row.questions)} for row in rows}
    return {**counts.pop(ALL), "kinds": counts}


def measure(assistant: asking.Assistant, questions: int) -> dict[str, Any]:
    """Exact match in the new world, on pairs of pictograms that training never showed together, and in the old world.

    Args:
        assistant: a loaded checkpoint, with an adapter or without one.
        questions: in each part.

    Returns:
        `exact_match` of each part.
    """
    measured = {}
    for split in ("test", "unseen_pairs"):
        asked = ask_pictograms(split, questions)
        measured[split] = exact_match(asked, answers(assistant, asked))
    tasks = open_tasks(["suite:test"], limit=questions)
    rows = measure_tasks(assistant.model, assistant.processor, tasks, Asking(batch_size=BATCH))
    return {**measured, "scenes": total(rows)}


def file_fingerprint(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def base_fingerprint(model: torch.nn.Module) -> str:
    """The SHA-256 of a model's own parameters, bit for bit, whether an adapter is attached or not.

    Args:
        model: a LLaDA-V, or a PEFT model around one.

    Returns:
        The fingerprint; adapter weights, and the copies of modules that are trained with them, are left out.
    """
    own = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name or ".modules_to_save." in name:
            continue
        plain = name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".").replace(".original_module.", ".")
        own[plain] = tensor
    digest = hashlib.sha256()
    for name in sorted(own):
        tensor = own[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train(data: Path, held_out: Path, output: Path, threads: int, settings: Sequence[str]) -> dict[str, Any]:
    """Run `lladav train lora` and read what it logged.

    Args:
        data: CSV to learn from.
        held_out: CSV for the curve.
        output: folder of the run.
        threads: CPU threads.
        settings: changes of the recipe.

    Returns:
        The command with file names only, steps, time, and the curve.
    """
    changes = [part for change in settings for part in ("--set", change)]
    command = ["train", "lora", "--data", str(data), "--eval-data", str(held_out), "--output", str(output)]
    command += ["--device", "cpu", "--threads", str(threads), "--workers", "1", "--report-to", "none", *changes]
    used, started = _cpu_seconds(), time.monotonic()
    subprocess.run([sys.executable, "-m", "transformers_lladav", *command], check=True)
    seconds, cpu_seconds = time.monotonic() - started, _cpu_seconds() - used
    log = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = [Path(part).name if part.startswith(str(data.parent)) else part for part in command]
    return {
        "command": shlex.join(["lladav", *shown]),
        "steps": max(record["step"] for record in log),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "loss": [{"step": record["step"], "loss": record["loss"]} for record in log if "loss" in record],
        "held_out": [
            {"step": record["step"], "loss": record["eval_loss"], "exact_match": record["eval_exact_match"]}
            for record in log
            if "eval_exact_match" in record
        ],
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_arm(
    replay: Sequence[Asked], train_set: Sequence[Asked], held_out: Sequence[Asked], options: argparse.Namespace
) -> tuple[dict[str, Any], asking.Assistant]:
    """Train and measure one run.

    Args:
        replay: questions about scenes to learn from besides; none for a run on pictograms alone.
        train_set: questions about pictograms to learn from.
        held_out: questions for the curve.
        options: `threads`, `questions` and `settings`.

    Returns:
        What it gave, and the trained model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_table(folder / "train.csv", [*train_set, *replay])
        write_table(folder / "held_out.csv", held_out)
        tables = folder / "train.csv", folder / "held_out.csv"
        trained = train(*tables, folder / "run", options.threads, options.settings)
        adapter = folder / "run" / "adapter"
        recipe = json.loads((adapter / "recipe.json").read_text(encoding="utf-8"))
        assistant = asking.load(BUNDLED_CHECKPOINT, device="cpu", adapter=adapter)
    after = measure(assistant, options.questions)
    with assistant.model.disable_adapter():
        without = answers(assistant, held_out)
    trained_parameters = sum(
        weight.numel()
        for name, weight in assistant.model.named_parameters()
        if ".lora_" in name or ".modules_to_save." in name
    )
    row = {
        "samples": {"pictograms": len(train_set), "scenes": len(replay)},
        "trained_parameters": trained_parameters,
        "recipe": recipe,
        **trained,
        "after": after,
        "base_sha256": {"file": file_fingerprint(WEIGHTS), "tensors": base_fingerprint(assistant.model)},
        "answers_without_adapter": without,
    }
    return row, assistant


def draw_sheet(assistant: asking.Assistant, path: Path, count: int = 24) -> None:
    """Lay held-out pictures out with the model's answers, right ones green, wrong ones red.

    Args:
        assistant: the trained model.
        path: PNG file to write.
        count: pictures.
    """
    asked = [item for item in ask_pictograms("test", 2 * count) if item.question.kind != "count"][:count]
    rows = [
        SheetRow(item.picture, item.question.text, item.question.answer, text)
        for item, text in zip(asked, answers(assistant, asked), strict=True)
    ]
    contact_sheet(rows, columns=8, tile=160).save(path, optimize=True)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Measure, train and measure again.

    Args:
        options: of the command line.
        arguments: the command line.

    Returns:
        The result document.
    """
    held_out = ask_pictograms("validation", options.questions)
    train_set = ask_pictograms("train", options.pictures)
    assistant = asking.load(device="cpu")
    base = {"file": file_fingerprint(WEIGHTS), "tensors": base_fingerprint(assistant.model)}
    before, before_answers = measure(assistant, options.questions), answers(assistant, held_out)
    arms: dict[str, Any] = {}
    for name in options.arms:
        replay = ask_scenes(options.replay) if ARMS[name] else []
        row, assistant = measure_arm(replay, train_set, held_out, options)
        without = row.pop("answers_without_adapter")
        same = sum(old == new for old, new in zip(before_answers, without, strict=True))
        arms[name] = {**row, "answers_without_adapter": {"questions": len(without), "as_before": same}}
    draw_sheet(assistant, options.sheet)
    return {
        **circumstances(
            "measure_finetuning.py", arguments, (*PACKAGES, "peft"), cores=os.cpu_count(), threads=options.threads
        ),
        "font": "Noto Color Emoji, SIL Open Font License 1.1",
        "pictograms": list(pictograms.NAMES),
        "pairs_held_out": sorted(map(sorted, pictograms.HELD_OUT_PAIRS)),
        "base_sha256": base,
        "before": before,
        "arms": arms,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measure everything and write the result file.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=6000, help="to learn from (default: %(default)s)")
    parser.add_argument("--replay", type=int, default=2000, help="scenes beside them (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=700, help="in each measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads besides the reader (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="runs; the last one is drawn")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="changes of the recipe")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, default=SHEET, help="contact sheet (default: %(default)s)")
    options = parser.parse_args(arguments)
    write_text(options.output, json.dumps(run(options, arguments), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
