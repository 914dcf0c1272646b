"""An evaluation from tasks to results: every answer is on disk as soon as it is given, and repeating a run goes on.

A run is told by what it asks, the weights that answer, and all settings that could change an answer. Several
processes, as `accelerate launch` or `torchrun` start them, share the questions out and answer each once.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from . import __version__, asking
from .eval_asking import Answer, Asking, Item, ask_batches, list_items, make_batches, resolve_generation
from .eval_folder import ANSWERS, as_lines, begun, check_folder, merge_answers, read_answers
from .eval_results import Row, as_tasks, markdown_table, rows_of, sum_up
from .eval_survey import Progress, Survey, survey
from .eval_tasks import ReadOptions, Task, open_tasks
from .files import naming_full_disk, write_text
from .processes import Processes
from .quantization import is_quantized
from .sources import check_source

RESULT, TABLE = "result.json", "result.md"
SAMPLES = 256  # values of a tensor that go into a fingerprint


@dataclass(frozen=True)
class EvalSettings:
    """What an evaluation is about.

    Attributes:
        output: its folder.
        tasks: names; see `eval_tasks.open_tasks`.
        model: folder or Hub id; by default the bundled checkpoint, or what the adapter was trained on.
        adapter: folder or Hub id of a LoRA adapter.
        metric: replaces every question's own.
        limit: questions of each task at most.
        blind: also ask every question about the pictures of another.
        how: the model is asked.
        read: how a user's records are read.
        device: "auto", or any torch device.
        trust_remote_code: run code that the checkpoint brings.
        quantization: how the language model is held; see `quantization.QUANTIZATIONS`.
        command: for the result: how a user began it.
    """

    output: Path
    tasks: tuple[str, ...] = ("suite",)
    model: str | None = None
    adapter: str | None = None
    metric: str | None = None
    limit: int | None = None
    blind: bool = False
    how: Asking = field(default_factory=Asking)
    read: ReadOptions = field(default_factory=ReadOptions)
    device: str = "auto"
    trust_remote_code: bool = False
    quantization: str | None = None
    command: str = "lladav eval"


@dataclass(frozen=True)
class Outcome:
    """How an evaluation ended.

    Attributes:
        document: the content of result.json.
        tasks: what was asked.
        answers: all of them.
        earlier: whether it had ended before, so that there was nothing to do.
    """

    document: dict[str, Any]
    tasks: list[Task]
    answers: list[Answer]
    earlier: bool

    @property
    def rows(self) -> list[Row]:
        """The result, by task and kind."""
        return rows_of(self.document)


def run_evaluation(settings: EvalSettings, on_progress: Callable[[str], Progress] | None = None) -> Outcome | None:
    """Evaluate a model, or go on with it.

    Args:
        settings: model, tasks, output.
        on_progress: gives, for what is being done, a function that is told how far it is.

    Returns:
        The outcome; None in all processes but the first.

    Raises:
        DataError: if a task's records cannot be used.
        FileExistsError: if something else stands in the output folder.
        ValueError: if a setting breaks a rule, or the folder holds another evaluation.
        OSError: if there is no such model.
    """
    processes = Processes()
    report = on_progress if on_progress is not None and processes.rank == 0 else lambda what: lambda done, total: None
    for source in (settings.model, settings.adapter):
        check_source(source)
    device = processes.device(settings.device)
    tasks = open_tasks(settings.tasks, limit=settings.limit, metric=settings.metric, options=settings.read)
    surveys = [survey(task, report(f"Reading {task.name}")) for task in tasks]
    assistant = asking.load(
        settings.model, device, settings.trust_remote_code, settings.adapter, settings.quantization
    )
    record = describe(settings, tasks, surveys, assistant.model, assistant.processor)
    check_folder(settings.output, record)
    with processes.together(), ExitStack() as stack:
        processes.wait()
        if processes.rank == 0:
            stack.enter_context(begun(settings.output, record))
        processes.wait()
        result = settings.output / RESULT
        earlier = result.is_file()
        if not earlier:
            _answer(settings, tasks, surveys, assistant, processes, report("Answering"))
        processes.wait()
        if processes.rank > 0:
            return None
        answers = read_answers(settings.output)
        _check_complete(settings, surveys, answers)
        if not earlier:
            _finish(settings, record, tasks, answers, assistant.model, processes.count)
        return Outcome(json.loads(result.read_text(encoding="utf-8")), tasks, answers, earlier)


def measure(
    model: Any,
    processor: Any,
    tasks: Sequence[Task],
    how: Asking | None = None,
    *,
    blind: bool = False,
    on_progress: Progress | None = None,
) -> list[Row]:
    """Evaluate a model that is in memory, and write nothing.

    Args:
        model: a LLaDA-V in evaluation mode.
        processor: its processor.
        tasks: from `open_tasks`.
        how: it is asked.
        blind: also ask every question about the pictures of another.
        on_progress: is told how many answers were given and how many there are to be.

    Returns:
        The result, by task and kind.
    """
    how = how or Asking()
    surveys = [survey(task) for task in tasks]
    items = list_items(surveys, blind)
    batches = make_batches(items, tasks, surveys, processor, how.batch_size)
    answers: list[Answer] = []
    for given in ask_batches(model, processor, tasks, batches, how):
        answers += given
        if on_progress is not None:
            on_progress(len(answers), len(items))
    return sum_up([task.name for task in tasks], answers)


def describe(
    settings: EvalSettings, tasks: Sequence[Task], surveys: Sequence[Survey], model: Any, processor: Any
) -> dict[str, Any]:
    """What tells a run from others: everything that could change an answer or how it is rated.

    Args:
        settings: of the run.
        tasks: what it asks.
        surveys: of the tasks.
        model: what answers.
        processor: its processor.

    Returns:
        JSON.
    """
    how = settings.how
    record = {
        "tasks": {
            task.name: {"version": task.version, "questions": len(task.questions), "digest": found.digest}
            for task, found in zip(tasks, surveys, strict=True)
        },
        "fingerprint": fingerprint(model, processor),
        "settings": {
            "metric": settings.metric,
            "blind": settings.blind,
            "ignored": asdict(how.ignored),
            "preset": how.preset,
            "seed": how.seed,
            "samples": how.samples,
            "generation": resolve_generation(model, how),
        },
        "device": str(model.device.type),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": is_quantized(model),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "transformers_lladav": __version__,
        },
    }
    found: dict[str, Any] = json.loads(json.dumps(record))
    return found


def fingerprint(model: Any, processor: Any) -> str:
    """A digest that tells models apart which may answer differently.

    It is taken over the names, the shapes and up to 256 evenly spaced values of every tensor, and over how the
    processor prepares text and pictures. It tells weights apart that were trained further, not ones in which somebody
    changed single values.

    Args:
        model: a LLaDA-V, bare or with adapters.
        processor: its processor.

    Returns:
        The digest; the same whether weights stored in half precision are loaded as they are or in float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} ".encode())
        if tensor.is_meta:
            continue
        values = tensor.detach().flatten()
        values = values[:: max(1, -(-values.numel() // SAMPLES))].cpu()
        values = values.float() if values.is_floating_point() else values
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    words = {name: value for name, value in tokenizer.items() if name not in ("padding", "truncation")}  # of a call
    prepares = [words, processor.image_processor.to_dict(), processor.chat_template]
    digest.update(json.dumps(prepares, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _answer(
    settings: EvalSettings,
    tasks: Sequence[Task],
    surveys: Sequence[Survey],
    assistant: asking.Assistant,
    processes: Processes,
    report: Progress,
) -> None:
    """Answer this process's share of what nobody answered yet."""
    everything = list_items(surveys, settings.blind)
    done = {answer.key for answer in read_answers(settings.output)}
    processes.wait()  # all have read before one writes
    items: list[Item] = [item for item in everything if item.key not in done]
    batches = make_batches(items, tasks, surveys, assistant.processor, settings.how.batch_size)
    share = batches[processes.rank :: processes.count]
    name = ANSWERS if processes.rank == 0 else f"answers.{processes.rank}.jsonl"
    count = len(done)
    report(count, len(everything))
    path = settings.output / name
    with naming_full_disk(path), path.open("a", encoding="utf-8") as file:
        for given in ask_batches(assistant.model, assistant.processor, tasks, share, settings.how):
            file.write(as_lines(given))
            file.flush()
            count = min(count + len(given) * processes.count, len(everything))
            report(count, len(everything))


def _check_complete(settings: EvalSettings, surveys: Sequence[Survey], answers: Sequence[Answer]) -> None:
    wanted = len(list_items(surveys, settings.blind))
    if len(answers) != wanted:
        raise ValueError(
            f"{settings.output} holds {len(answers)} of {wanted} answers; all processes must write to the same disk, "
            f"and {ANSWERS} must stay as it is: remove {RESULT} if there is one, and repeat the command"
        )


def _finish(
    settings: EvalSettings,
    record: dict[str, Any],
    tasks: Sequence[Task],
    answers: Sequence[Answer],
    model: Any,
    processes: int,
) -> None:
    """Put all answers into one file and write the result; result.json is last, because it says that all is done."""
    folder = settings.output
    merge_answers(folder, answers)
    device = torch.cuda.get_device_name(model.device) if record["device"] == "cuda" else record["device"]
    base = "bundled" if settings.adapter is None else model.config.name_or_path
    rows = as_tasks(sum_up([task.name for task in tasks], answers))
    document = {
        "command": settings.command,
        "machine": {
            "processor": platform.machine(), "system": platform.system(), "device": device, "processes": processes
        },
        "versions": record["versions"],
        "model": {
            "source": settings.model or base,
            "adapter": settings.adapter,
            "fingerprint": record["fingerprint"],
            "dtype": record["dtype"],
        },
        "settings": record["settings"],
        "tasks": [{**record["tasks"][row["task"]], **row} for row in rows],
    }  # fmt: skip
    write_text(folder / TABLE, markdown_table(document))
    write_text(folder / RESULT, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
