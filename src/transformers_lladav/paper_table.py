"""The benchmarks of the LLaDA-V paper, run by lmms-eval one after the other, beside the scores that the paper reports.

Each benchmark is a process of lmms-eval and a folder that appears when it is complete; repeating a run goes on with
those that are missing.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .cards import read_data
from .files import new_folder, write_text
from .lmms_eval_model import find_tasks
from .lmms_eval_settings import LENGTHS, TaskSettings, settings_of_task
from .run_records import differences
from .sources import check_source

RESULT = "result.json"
TABLES = ("table.json", "table.md")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper, in lmms-eval's terms.

    Attributes:
        name: on the command line, and of the folder.
        id: of the paper's score, see `model_cards/paper/scores.json`.
        config: of the paper's score, where it has one.
        tasks: of lmms-eval; the score is the mean over all their questions.
        metric: of these tasks.
        share: whether the metric is a share of 1 and not in per cent.
        variables: of the environment that have to be set, such as the key of a judge.
        note: what a reader of the table should know.
    """

    name: str
    id: str
    tasks: tuple[str, ...]
    metric: str
    config: str | None = None
    share: bool = True
    variables: tuple[str, ...] = ()
    note: str = ""

    def paper_score(self) -> float | None:
        """What the paper reports.

        Returns:
            The score in per cent; None where the paper has none.
        """
        for score in read_data("paper/scores.json")["scores"]:
            if (score["id"], score.get("config")) == (self.id, self.config):
                return float(score["score"])
        return None


_MATHVERSE = tuple(f"mathverse_testmini_vision_{kind}" for kind in ("intensive", "dominant", "only"))
BENCHMARKS = (
    Benchmark("mmmu", "mmmu", ("mmmu_val",), "mmmu_acc"),
    Benchmark("mmmu_pro_standard", "mmmu_pro", ("mmmu_pro_standard",), "mmmu_acc", "standard"),
    Benchmark("mmmu_pro_vision", "mmmu_pro", ("mmmu_pro_vision",), "mmmu_acc", "vision"),
    Benchmark("mmstar", "mmstar", ("mmstar",), "average"),
    Benchmark("seedbench", "seedbench", ("seedbench",), "seed_image", note="questions about single pictures"),
    Benchmark(
        "mmbench", "mmbench", ("mmbench_en_dev_static",), "gpt_eval_score", share=False,
        note="letters are read from the answers, without a judge",
    ),
    Benchmark(
        "mathverse", "mathverse", _MATHVERSE, "gpt_eval_score", "vision", variables=("OPENAI_API_KEY",),
        note="answers are compared by a judge, which costs money",
    ),
    Benchmark("ai2d", "ai2d", ("ai2d",), "exact_match"),
    Benchmark("chartqa", "chartqa", ("chartqa",), "relaxed_overall"),
    Benchmark("docvqa", "docvqa", ("docvqa_val",), "anls", note="validation split"),
    Benchmark("infovqa", "infovqa", ("infovqa_val",), "anls", note="validation split"),
    Benchmark("realworldqa", "realworldqa", ("realworldqa",), "exact_match"),
    Benchmark("mlvu", "mlvu", ("mlvu_dev",), "mlvu_percetion_score", share=False),
    Benchmark("videomme", "videomme", ("videomme",), "videomme_perception_score", share=False),
    Benchmark("muirbench", "muirbench", ("muirbench",), "muirbench_score_overall"),
)  # fmt: skip


def find_benchmarks(names: Sequence[str]) -> tuple[Benchmark, ...]:
    """Benchmarks by their names.

    Args:
        names: none for all.

    Returns:
        The benchmarks, in the order of the paper.

    Raises:
        ValueError: for a name that none has.
    """
    known = [benchmark.name for benchmark in BENCHMARKS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--tasks {unknown[0]} is not a benchmark of the paper; choose some of {', '.join(known)}")
    return tuple(benchmark for benchmark in BENCHMARKS if not names or benchmark.name in names)


@dataclass(frozen=True)
class PaperTable:
    """What is run, with what, and where to.

    Attributes:
        model: folder or Hub id.
        output: folder of the results.
        benchmarks: which.
        processes: that share the questions of a benchmark.
        batch_size: questions that a process answers together.
        limit: questions of each task; None for all.
        device: "auto", or any torch device.
        include_path: folder of further tasks of lmms-eval.
    """

    model: str
    output: Path
    benchmarks: tuple[Benchmark, ...] = BENCHMARKS
    processes: int = 1
    batch_size: int = 1
    limit: int | None = None
    device: str = "auto"
    include_path: Path | None = None

    def command(self, benchmark: Benchmark, folder: Path) -> list[str]:
        """How lmms-eval is called.

        Args:
            benchmark: what is run.
            folder: where lmms-eval leaves its results.

        Returns:
            The command.
        """
        # torchrun, because `accelerate launch` begins a single process where there is no GPU.
        several = ["torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}", "-m"]
        launcher = [sys.executable, "-m", *(several if self.processes > 1 else []), "lmms_eval"]
        options = {
            "model": "lladav", "model_args": f"pretrained={self.model}", "tasks": ",".join(benchmark.tasks),
            "batch_size": self.batch_size, "limit": self.limit, "include_path": self.include_path,
            "device": None if self.device == "auto" else self.device, "output_path": folder,
        }  # fmt: skip
        given = [(name, str(value)) for name, value in options.items() if value is not None]
        return [*launcher, *(text for name, value in given for text in (f"--{name}", value)), "--log_samples"]


@dataclass(frozen=True)
class Row:
    """A benchmark's row of the table.

    Attributes:
        benchmark: which.
        settings: its tasks are answered with.
        measured: score in per cent; None where it was not run.
        questions: how many were asked.
        problem: why it was not run, in words.
        earlier: whether the result was there already.
    """

    benchmark: Benchmark
    settings: TaskSettings
    measured: float | None = None
    questions: int = 0
    problem: str = ""
    earlier: bool = False

    @property
    def remark(self) -> str:
        """What stands at the end of its row."""
        return f"not run: {self.problem}" if self.problem else self.benchmark.note


def plan(table: PaperTable) -> list[Row]:
    """Say what would be run; nothing is downloaded, loaded or written.

    Args:
        table: what is asked for.

    Returns:
        A row per benchmark: with its score where the result is there already, with the problem where it cannot run.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if a result is there that was made with other settings, or the model cannot be named to lmms-eval.
    """
    check_source(table.model)
    if "," in table.model or "=" in table.model:
        raise ValueError(f"--model {table.model} holds a comma or an equals sign, which lmms-eval parts arguments at")
    names = [task for benchmark in table.benchmarks for task in benchmark.tasks]
    found = find_tasks(names, None if table.include_path is None else str(table.include_path))
    return [_planned(table, benchmark, found) for benchmark in table.benchmarks]


def _planned(table: PaperTable, benchmark: Benchmark, found: Mapping[str, dict[str, Any] | str]) -> Row:
    configs = {task: config for task in benchmark.tasks if isinstance(config := found[task], dict)}
    kwargs = next(iter(configs.values()), {}).get("generation_kwargs") or {}
    settings = settings_of_task(benchmark.tasks[0], kwargs)
    earlier = table.output / benchmark.name / RESULT
    if earlier.is_file():
        document = json.loads(earlier.read_text(encoding="utf-8"))
        if changes := list(differences(document["made_with"], _made_with(table, benchmark, settings))):
            raise ValueError(
                f"{earlier} was made with other settings: {'; '.join(changes)}. Choose another --output, or remove "
                f"{earlier.parent}"
            )
        return Row(benchmark, settings, document["score"], document["questions"], earlier=True)
    problems = [reason for task in benchmark.tasks if isinstance(reason := found[task], str)]
    for task, config in configs.items():
        if benchmark.metric not in [entry["metric"] for entry in config.get("metric_list") or []]:
            problems.append(f"the task {task!r} of this lmms-eval has no metric {benchmark.metric!r}")
    problems += [f"set {name} for the judge" for name in benchmark.variables if not os.environ.get(name)]
    return Row(benchmark, settings, problem="; ".join(problems))


def run(table: PaperTable, say: Callable[[str], None]) -> list[Row]:
    """Run the benchmarks whose results are not there yet, and write both tables.

    Args:
        table: what is asked for.
        say: is told what happens.

    Returns:
        A row per benchmark.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if a result is there that was made with other settings.
    """
    rows = plan(table)
    table.output.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        name = row.benchmark.name
        if row.earlier or row.problem:
            say(f"{name}: {'the result is there' if row.earlier else row.problem}")
        else:
            log = table.output / f"{name}.log"
            say(f"{name}: {row.settings.describe()}; see {log}")
            rows[number] = _measured(table, row, log)
            say(f"{name}: {rows[number].problem or f'{rows[number].measured:.1f}'}")
        write_text(table.output / TABLES[0], json.dumps(as_document(table, rows), indent=1, ensure_ascii=False) + "\n")
        write_text(table.output / TABLES[1], as_markdown(table, rows))
    return rows


class _NoResultError(Exception):
    """lmms-eval ended and left no score; it ends with 0 then as well."""


def _measured(table: PaperTable, row: Row, log: Path) -> Row:
    """Run lmms-eval on a benchmark."""
    benchmark = row.benchmark
    try:
        with new_folder(table.output / benchmark.name) as folder:
            command = table.command(benchmark, folder)
            with log.open("w", encoding="utf-8") as file:
                print(shlex.join(command), file=file, flush=True)
                ended = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
            files = sorted(folder.rglob("*_results.json"))
            if not files:
                raise _NoResultError(f"lmms-eval ended without a result (exit code {ended.returncode}); see {log}")
            try:
                score, questions = read_score(benchmark, json.loads(files[-1].read_text(encoding="utf-8")))
            except ValueError as error:
                raise _NoResultError(f"{error}; see {log}") from error
            made_with = _made_with(table, benchmark, row.settings)
            document = {"score": score, "questions": questions, "made_with": made_with}
            write_text(folder / RESULT, json.dumps(document, indent=1) + "\n")
    except _NoResultError as error:
        return Row(benchmark, row.settings, problem=str(error))
    return Row(benchmark, row.settings, score, questions)


def read_score(benchmark: Benchmark, document: Mapping[str, Any]) -> tuple[float, int]:
    """Find a benchmark's score in what lmms-eval wrote.

    Args:
        benchmark: whose.
        document: a results file.

    Returns:
        The score in per cent, over all questions of its tasks, and how many these are.

    Raises:
        ValueError: if a task's metric is not there, or no number.
    """
    total, questions = 0.0, 0
    for task in benchmark.tasks:
        figures = document["results"].get(task, {})
        values = [value for name, value in figures.items() if name.split(",")[0] == benchmark.metric]
        if not values or not isinstance(values[0], int | float):
            told = ", ".join(f"{name}={value!r}" for name, value in figures.items()) or "nothing"
            raise ValueError(f"the results of {task} have no {benchmark.metric!r} that is a number, but {told}")
        count = int(document["n-samples"][task]["effective"])
        total, questions = total + values[0] * count, questions + count
    return total / questions * (100 if benchmark.share else 1), questions


def _made_with(table: PaperTable, benchmark: Benchmark, settings: TaskSettings) -> dict[str, Any]:
    """What decides a score. Neither the batch size nor the number of processes is among it."""
    folder = Path(table.model)
    files = (
        sorted(path for kind in ("*.safetensors", "*.json") for path in folder.glob(kind)) if folder.is_dir() else []
    )
    facts = {path.name: [(status := path.stat()).st_size, status.st_mtime_ns] for path in files}
    return {
        "model": str(folder.resolve()) if folder.is_dir() else table.model,
        "files": facts,
        "tasks": list(benchmark.tasks),
        "metric": benchmark.metric,
        "generation": settings.generation,
        "tag": settings.tag,
        "limit": table.limit,
        "lmms_eval": version("lmms-eval"),
    }


def as_document(table: PaperTable, rows: Sequence[Row]) -> dict[str, Any]:
    """The table as JSON.

    Args:
        table: what was asked for.
        rows: of the benchmarks.

    Returns:
        A row per benchmark, with the paper's score under a name that says whose it is.
    """
    return {
        "model": table.model,
        "lmms_eval": version("lmms-eval"),
        "limit": table.limit,
        "paper": read_data("paper/scores.json")["source"],
        "rows": [
            {
                "benchmark": row.benchmark.name,
                "tasks": list(row.benchmark.tasks),
                "metric": row.benchmark.metric,
                "settings": row.settings.generation,
                "tag": row.settings.tag,
                "questions": row.questions,
                "measured": row.measured,
                "reported_by_the_paper": row.benchmark.paper_score(),
                "not_run": row.problem or None,
                "note": row.benchmark.note or None,
            }
            for row in rows
        ],
    }


def as_markdown(table: PaperTable, rows: Sequence[Row]) -> str:
    """The table as Markdown.

    Args:
        table: what was asked for.
        rows: of the benchmarks.

    Returns:
        The text of a file.
    """
    source = read_data("paper/scores.json")["source"]
    lines = [
        f"Measured: `{table.model}`, lmms-eval {version('lmms-eval')}. The last column of figures is what the authors "
        f"of [{source['name']}]({source['url']}) report, and was not measured here.",
        *(
            ["", f"**Only the first {table.limit} questions of each task**: these figures compare with none."]
            if table.limit
            else []
        ),
        "",
        "| benchmark | tasks | tokens / block / steps | tag | questions | measured | reported by the paper | |",
        "|---|---|---:|---|---:|---:|---:|---|",
    ]
    for row in rows:
        lengths = " / ".join(str(row.settings.generation.get(name)) for name in LENGTHS)
        measured, reported = _figure(row.measured), _figure(row.benchmark.paper_score())
        cells = (
            row.benchmark.name, ", ".join(row.benchmark.tasks), lengths, row.settings.tag or "",
            str(row.questions or ""), measured, reported, row.remark.replace("|", "\\|"),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _figure(score: float | None) -> str:
    return "" if score is None else f"{score:.1f}"
