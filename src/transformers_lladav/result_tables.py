"""Markdown tables of measured results, for the README and for model cards: a function per kind of result file."""

from typing import Any

KIND_NAMES = {
    "colour": "colour (“What colour is the star?”)",
    "shape": "shape (“Which shape is red?”)",
    "position": "position (“Where is the red star?”, “What is at the top left?”)",
    "relation": "relation (“Is the red star left of the blue ring?”, “What is directly above the red star?”)",
    "existence": "existence (“Is there a red star?”)",
    "count": "count (“How many red shapes are there?”)",
    "comparison": "comparison (“Are there more stars or more rings?”)",
    "caption": "whole caption, every word (“Describe the picture.”)",
    "dialogue": "second question of a dialogue (“And which shape is it?”)",
    "ocr": "words and numbers, up to 6 characters (“What does the sign say?”)",
    "chart": "bar charts: value, extreme, difference (“Which bar is the highest?”)",
    "change": "two pictures (“What changed?”)",
    "reasoned": "counting after a listing, with /think",
    "all": "**all**",
}
SHOWN = {"kind", "score", "interval", "blind_score", "tokens_per_forward"}  # of each kind of question
SUITE_TASKS = ("suite:test", "suite:unseen_pairs", "suite:more_objects", "suite:unseen_fonts")


def parity_table(document: dict[str, Any]) -> str:
    """Largest deviation of each group of recorded cases.

    Args:
        document: a parity result: {"cases": [{"group", "case", "deviation", "tolerance"}], ...}.

    Returns:
        A Markdown table.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in document["cases"]:
        groups.setdefault(case["group"], []).append(case)
    rows = ["| compared | cases | largest deviation | tolerance |", "|---|---:|---:|---:|"]
    for name, cases in groups.items():
        worst = max(cases, key=lambda case: case["deviation"])
        largest = "none" if worst["deviation"] == 0 else f"{worst['deviation']:.1e}"
        tolerance = "exact" if worst["tolerance"] == 0 else f"{worst['tolerance']:.0e}"
        rows.append(f"| {name} | {len(cases)} | {largest} | {tolerance} |")
    return "\n".join(rows)


def is_of_suite(document: dict[str, Any]) -> bool:
    """Whether a result has what `evaluation_table` shows.

    Args:
        document: any result.
    """
    tasks = document.get("tasks")
    if "command" not in document or not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        return False
    rows = [row for task in tasks for row in task.get("kinds", [{}])]
    return (
        all(isinstance(task.get("task"), str) and "questions" in task for task in tasks)
        and {"suite:test", "suite:unseen_pairs"} <= {task["task"] for task in tasks}
        and all(isinstance(row, dict) and row.keys() >= SHOWN and row["kind"] in KIND_NAMES for row in rows)
    )


def evaluation_table(document: dict[str, Any]) -> str:
    """Exact match by kind of question.

    Args:
        document: the result.json of `lladav eval` on the suite.

    Returns:
        A Markdown table of the test split beside the blind baseline, if there is one, and the generalisation splits.
    """
    tasks = {task["task"]: {row["kind"]: row for row in task["kinds"]} for task in document["tasks"]}
    test, *others = (tasks.get(name, {}) for name in SUITE_TASKS)
    rows = [
        "| question | exact match (95 % interval) | wrong picture | unseen pairs | six and seven objects "
        "| unseen typeface | tokens per forward |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, row in test.items():
        low, high = row["interval"]
        blind = "" if row["blind_score"] is None else f"{row['blind_score']:.1%}"
        shares = [f"{other[kind]['score']:.1%}" if kind in other else "" for other in others]
        rows.append(
            f"| {KIND_NAMES[kind]} | {row['score']:.1%} ({low:.1%} to {high:.1%}) | {blind} "
            f"| {' | '.join(shares)} | {row['tokens_per_forward']:.2f} |"
        )
    asked = ", ".join(f"{task['questions']:,} of {task['task'].removeprefix('suite:')}" for task in document["tasks"])
    rows.append(f"\nQuestions: {asked}. `{document['command']}`.")
    return "\n".join(rows)


def stages_table(document: dict[str, Any]) -> str:
    """What the stages of the small model cost.

    Args:
        document: the stages.json of `lladav train tiny`.

    Returns:
        A Markdown table, a row for each stage, and the total time.
    """
    rows = ["| stage | | steps | samples | minutes | CPU minutes |", "|---|---|---:|---:|---:|---:|"]
    stages = document["stages"]
    for stage in stages:
        rows.append(
            f"| {stage['name']} | {stage['description']} | {stage['steps']:,} | {stage['samples']:,} "
            f"| {stage['seconds'] / 60:.0f} | {stage['cpu_seconds'] / 60:.0f} |"
        )
    minutes, cpu_minutes = (sum(stage[name] for stage in stages) / 60 for name in ("seconds", "cpu_seconds"))
    # Processes that draw pictures are counted once they have ended, which is after the last record.
    counted = (
        f"{minutes:.0f} minutes in all, {cpu_minutes:.0f} of CPU time without the processes that draw the pictures"
    )
    rows.append(f"\n{counted}; `{document['command']}`.")
    return "\n".join(rows)


RULE_NAMES = {
    "max_denoising_steps": "fixed schedule",
    "threshold": "threshold",
    "factor": "factor",
    "entropy_bound": "entropy bound",
}


def rule_of(settings: dict[str, Any]) -> tuple[str, float]:
    """Which rule an arm uses, and its parameter.

    Args:
        settings: of the arm.

    Returns:
        A key of `RULE_NAMES` and the value.
    """
    name = next(name for name in reversed(RULE_NAMES) if name in settings)
    return name, settings[name]


def decoding_table(document: dict[str, Any]) -> str:
    """What each commit rule costs and brings.

    Args:
        document: written by measure_decoding.py.

    Returns:
        A Markdown table.
    """
    rows = [
        "| rule | block | exact match | captions | unseen pairs | ambiguous pictures | tokens per forward |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in document["arms"]:
        name, value = rule_of(arm["settings"])
        label = (
            f"{value} step{'s' * (value > 1)}" if name == "max_denoising_steps" else f"{RULE_NAMES[name]} {value:g}"
        )
        test, unseen, blended = arm["test"], arm["unseen_pairs"], arm["blended"]
        rows.append(
            f"| {label} | {arm['settings']['block_length']} | {test['exact_match']:.1%} "
            f"| {test['caption_exact_match']:.1%} | {unseen['exact_match']:.1%} | {blended['well_formed']:.1%} "
            f"| {test['tokens_per_forward']:.2f} / {blended['tokens_per_forward']:.2f} |"
        )
    first = document["arms"][0]
    rows.append(
        f"\n{first['test']['questions']} questions per split and {first['blended']['samples']} ambiguous pictures; "
        "tokens per forward on questions / on ambiguous pictures; "
        f"canvas of {first['settings']['max_new_tokens']} tokens; "
        f"`{document['command']}`."
    )
    return "\n".join(rows)


def infilling_table(document: dict[str, Any]) -> str:
    """How well hidden words of captions are filled in.

    Args:
        document: written by measure_decoding.py.

    Returns:
        A Markdown table.
    """
    rows = ["| hidden word of a true caption | filled right | wrong picture |", "|---|---:|---:|"]
    for row in document["infilling"]:
        rows.append(f"| {row['hidden']} | {row['exact_match']:.1%} | {row['wrong_picture']:.1%} |")
    rows.append(f"\n{document['infilling'][0]['captions']} captions each.")
    return "\n".join(rows)


def repeats_table(document: dict[str, Any]) -> str:
    """How much long answers repeat themselves, with and without the n-gram rule.

    Args:
        document: written by measure_decoding.py.

    Returns:
        A Markdown table.
    """
    rows = [
        "| steps | no_repeat_ngram_size | answers with a repeated run | tokens in such runs | tokens per forward |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in document["repeats"]:
        settings = row["settings"]
        rows.append(
            f"| {settings['max_denoising_steps']} | {settings.get('no_repeat_ngram_size', 'off')} "
            f"| {row['answers_with_repeats']:.0%} | {row['repeated_tokens']:.1%} | {row['tokens_per_forward']:.2f} |"
        )
    rows.append(f"\n{document['repeats'][0]['samples']} captions of 96 tokens, the end token forbidden.")
    return "\n".join(rows)


def conversion_table(document: dict[str, Any]) -> str:
    """Memory and time of a conversion.

    Args:
        document: written by measure_conversion.py.

    Returns:
        A Markdown table of what was measured beside what follows for the whole checkpoint.
    """
    measured, whole = document["measured"], document["extrapolated"]
    rows = [
        "| converting | checkpoint | largest file written | peak memory | of it not file pages | time |",
        "|---|---:|---:|---:|---:|---:|",
        f"| measured: real shapes, {measured['language_layers']} of {whole['language_layers']} layers, bfloat16 "
        f"| {measured['checkpoint_bytes'] / 1e9:.2f} GB | {measured['largest_output_file_bytes'] / 1e9:.2f} GB "
        f"| {measured['peak_bytes'] / 1e9:.2f} GB | {measured['peak_anonymous_bytes'] / 1e9:.2f} GB "
        f"| {measured['seconds']:.0f} s |",
        f"| **extrapolated** to all layers | {whole['checkpoint_bytes'] / 1e9:.2f} GB "
        f"| {whole['largest_output_file_bytes'] / 1e9:.2f} GB | {whole['peak_bytes'] / 1e9:.2f} GB | "
        f"| {whole['seconds']:.0f} s |",
    ]
    machine = document["machine"]
    rows.append(
        f"\nMedian time and largest peak of {len(measured['runs'])} runs, {machine['cores']} CPU cores; a plain copy "
        f"of the same files, in turn with them, took {measured['plain_copy_seconds']:.0f} s. Memory grows with the "
        f"largest file written, time with the checkpoint. `{document['command']}`."
    )
    return "\n".join(rows)


PICTOGRAM_KINDS = {
    "what": "“What is in the picture?”",
    "what_is_at": "“What is at the top left?”",
    "where_is": "“Where is the cat?”",
    "count": "“How many pictograms are there?”",
    "grid": "“Read the grid.”",
}


def finetuning_table(document: dict[str, Any]) -> str:
    """What a model learns of a new world, and what it keeps of its old one.

    Args:
        document: written by measure_finetuning.py.

    Returns:
        A Markdown table.
    """
    before, arms = document["before"], document["arms"]
    columns = [before, *(arm["after"] for arm in arms.values())]

    def row(label: str, part: str, kind: str | None = None) -> str:
        counts = [column[part]["kinds"][kind] if kind else column[part] for column in columns]
        shares = [f"{count['correct'] / count['questions']:.1%}" for count in counts]
        return f"| {label} | {' | '.join(shares)} |"

    rows = [
        f"| exact match | before | {' | '.join(f'after: {name}' for name in arms)} |",
        "|---|" + "---:|" * len(columns),
        row("**pictograms**, new pictures", "test"),
        *(row(PICTOGRAM_KINDS[kind], "test", kind) for kind in before["test"]["kinds"]),
        row("**pictograms**, pairs never shown together", "unseen_pairs"),
        row("**scenes**, the old world", "scenes"),
    ]
    runs = "; ".join(
        f"{name}: {sum(arm['samples'].values()):,} samples, {arm['steps']:,} steps, {arm['seconds'] / 60:.0f} minutes "
        f"({arm['cpu_seconds'] / 60:.0f} of CPU time)"
        for name, arm in arms.items()
    )
    unchanged = all(arm["base_sha256"] == document["base_sha256"] for arm in arms.values())
    threads = document["machine"]["threads"]
    computing = "1 CPU thread" if threads == 1 else f"{threads} CPU threads"
    rows.append(
        f"\n{before['test']['questions']} questions a row in bold. {runs}; {computing} and one that reads. "
        f"Base weights afterwards: {'the same, bit for bit' if unchanged else 'changed'}. `{document['command']}`."
    )
    return "\n".join(rows)


def answering_table(document: dict[str, Any]) -> str:
    """What answering needs and on which card it fits: computed, not measured.

    Args:
        document: written by measure_training.py --estimate.

    Returns:
        A Markdown table, a row for each way of holding the weights.
    """
    rows = [
        "| language model | weights | with what is remembered | smallest card |",
        "|---|---:|---:|---:|",
    ]
    for row in document["answering"]:
        card = "none" if row["card"] is None else f"{row['card']} GB"
        name = "half precision" if row["quantization"] is None else f"`{row['quantization']}`"
        rows.append(f"| {name} | {row['weights'] / 1e9:.1f} GB | {row['total'] / 1e9:.1f} GB | {card} |")
    rows.append(
        f"\n**Computed, not measured**: {document['positions']:,} positions of prompt and answer, batch 1, 1 GB for "
        f"CUDA included; `{document['command']}`."
    )
    return "\n".join(rows)


def memory_table(document: dict[str, Any]) -> str:
    """What training needs and on which cards it fits: computed, not measured.

    Args:
        document: written by measure_training.py --estimate.

    Returns:
        A Markdown table, a row for each recipe and length.
    """
    node = document["node"]
    rows = [
        "| recipe | tokens | with checkpointing | smallest card | without | smallest card "
        f"| each of {node['devices']} x {node['card']} GB, FSDP2 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lengths: dict[tuple[str, int], dict[bool, dict[str, Any]]] = {}
    for row in document["rows"]:
        lengths.setdefault((row["recipe"], row["tokens"]), {})[row["checkpointing"]] = row
    for (recipe, tokens), found in lengths.items():
        cells = [recipe, f"{tokens:,}"]
        for checkpointing in (True, False):
            row = found[checkpointing]
            card = f"{min(row['cards'])} GB" if row["cards"] else "none"
            cells += [f"{row['device_bytes'] / 1e9:.0f} GB", card]
        shared = found[True]["sharded_bytes"]
        note = "" if found[True]["node"] else ", does not fit"
        cells.append("not sharded" if shared is None else f"{shared / 1e9:.0f} GB{note}")
        rows.append(f"| {' | '.join(cells)} |")
    cards = ", ".join(str(card) for card in document["cards"])
    rows.append(
        f"\n**Computed, not measured**: LLaDA-V 8B, one sample at a time, AdamW, bfloat16, cards of {cards} GB of "
        f"10^9 bytes, with {document['context_bytes'] / 1e9:.0f} GB for CUDA and 5 % for fragmentation; sharded with "
        f"checkpointing; `{document['command']}`."
    )
    return "\n".join(rows)
