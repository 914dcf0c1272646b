"""Model cards: a template per kind of folder, filled from the folder's own files and from result files."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import BUNDLED_CHECKPOINT
from .card_facts import (
    ADAPTER_CONFIG,
    METRIC_FILES,
    RECIPE,
    adapter_settings,
    flatten,
    read_object,
    read_recipe,
    read_weights,
    settings_table,
)
from .official_config_lladav import OFFICIAL_MODEL_TYPE
from .presets_lladav import PRESETS
from .result_tables import (
    decoding_table,
    evaluation_table,
    infilling_table,
    is_of_suite,
    parity_table,
    stages_table,
)
from .sources import is_hub_id
from .weights import stored_origin

Kind = Literal["converted", "adapter", "bundled"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES = {"bundled": "A tiny LLaDA-V"}  # of a folder that is not published; the others are called as their folder is
TAGS = ["lladav", "masked-diffusion", "vision-language-model"]

# Beside the card of the small model: questions of every kind with their answers, wrong answers, and a list of these.
SHEETS = ("suite.png", "failures.png", "failures.md")


def card_folder() -> Path:
    """Where templates, the paper's figures and our results lie: in an installed package, or in the repository."""
    packaged = Path(__file__).parent / "model_cards"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "model_cards"


def read_data(name: str) -> Any:
    """A data file of the cards.

    Args:
        name: such as "paper/scores.json".

    Returns:
        Its content.
    """
    return json.loads((card_folder() / name).read_text(encoding="utf-8"))


def detect_kind(folder: Path) -> Kind:
    """What a folder holds.

    Args:
        folder: a checkpoint or an adapter.

    Returns:
        "adapter" for a PEFT folder, "bundled" for a small model trained by `lladav train tiny`, "converted" for any
        other model of ours.

    Raises:
        ValueError: for any other folder.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    model_type = read_object(folder / "config.json").get("model_type")
    if model_type == OFFICIAL_MODEL_TYPE:
        raise ValueError(
            f"{folder} has the layout of the official release; convert it first: "
            f"python conversion/convert_checkpoint.py --source {folder} --output {folder.resolve().name}-hf"
        )
    if model_type != "lladav":
        raise ValueError(f"{folder} holds a model of type {model_type!r}, not 'lladav'")
    return "bundled" if _is_tiny(folder) else "converted"


def _is_tiny(folder: Path) -> bool:
    """Whether the recipes beside the weights are those of the stages of `lladav train tiny`."""
    return (folder / RECIPE).is_file() and read_object(folder / RECIPE).keys() >= {"tower", "stage1"}


def render_card(
    folder: str | Path, kind: Kind | None = None, repo_id: str | None = None, base_model: str | None = None
) -> ModelCard:
    """Write the model card of a folder.

    Args:
        folder: a native checkpoint or a PEFT adapter.
        kind: what to take it for; detected by default.
        repo_id: the repository it will stand in, for title and snippets; by default the folder's name and a path.
        base_model: Hub id that an adapter was trained on; by default what its configuration says, if that is one.

    Returns:
        The card; its text is `.content`.

    Raises:
        ValueError: if the folder cannot be described.
    """
    folder = Path(folder)
    kind = kind or detect_kind(folder)
    describe = {"converted": _describe_model, "adapter": _describe_adapter, "bundled": _describe_bundled}[kind]
    data, facts = describe(folder, base_model)
    facts |= {
        "card_data": data.to_yaml(),
        "title": repo_id.split("/")[-1] if repo_id else TITLES.get(kind, folder.resolve().name),
        "repository": json.dumps(repo_id or folder.resolve().name),
        "published": repo_id is not None,
        "weights": read_weights(folder),
        "model": read_data("paper/model.json"),
        "measured": _measured(folder),
    }
    environment = Environment(
        loader=FileSystemLoader(card_folder() / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; what comes from files stands in code spans, see card_facts.cell
    )
    return ModelCard(environment.get_template(f"{kind}.md.jinja").render(facts).lstrip())


def _measured(folder: Path) -> list[tuple[str, str]]:
    """Tables of the metric files beside the weights, by file name."""
    tables = []
    for name in METRIC_FILES:
        if not (folder / name).is_file():
            continue
        document = read_object(folder / name)
        ours = is_of_suite(document)
        tables.append((name, evaluation_table(document) if ours else settings_table(flatten(document))))
    return [(name, table) for name, table in tables if table]


def is_official_size(config: dict[str, Any]) -> bool:
    """Whether a configuration has the sizes of the released LLaDA-V.

    Args:
        config: a native `config.json`.
    """
    sizes = read_data("paper/model.json")["sizes"]
    return all(config.get(part, {}).get(name) == size for part in sizes for name, size in sizes[part].items())


def paper_results() -> list[EvalResult]:
    """The paper's scores as metadata; their source says whose they are.

    Returns:
        One result per score.
    """
    document = read_data("paper/scores.json")
    source = document["source"]
    return [
        EvalResult(
            task_type=score.get("task", "image-text-to-text"),
            dataset_type=score["id"],
            dataset_name=_benchmark(score),
            dataset_config=score.get("config"),
            dataset_split=score.get("split"),
            metric_type="score",
            metric_name="score reported by the authors",
            metric_value=score["score"],
            source_name=source["name"],
            source_url=source["url"],
        )
        for score in document["scores"]
    ]


def _benchmark(score: dict[str, Any]) -> str:
    details = ", ".join(score[name] for name in ("split", "config") if name in score)
    return f"{score['benchmark']} ({details})" if details else str(score["benchmark"])


def paper_table() -> str:
    """The paper's scores beside the generation settings they were measured with.

    Returns:
        A Markdown table.
    """
    rows = [
        "| benchmark | score in the paper | preset | tokens / block / steps | stops at | tag |",
        "|---|---:|---|---:|---|---|",
    ]
    for score in read_data("paper/scores.json")["scores"]:
        preset = PRESETS[score["preset"]]
        lengths = [preset.settings[name] for name in ("max_new_tokens", "block_length", "max_denoising_steps")]
        stops = ", ".join(f"`{json.dumps(text)}`" for text in preset.settings.get("stop_strings") or [])
        rows.append(
            f"| {_benchmark(score)} | {score['score']} | `{score['preset']}` | {' / '.join(map(str, lengths))} "
            f"| {stops} | `{preset.tag}` |"
        )
    return "\n".join(rows)


def _stages_table(stages: list[dict[str, str]]) -> str:
    rows = ["| stage | data | on the Hub | trains |", "|---|---|---|---|"]
    for stage in stages:
        name = stage.get("dataset")
        link = f"[{name}](https://huggingface.co/datasets/{name})" if name else ""
        rows.append(f"| {stage['stage']} | {stage['data']} | {link} | {stage['trains']} |")
    return "\n".join(rows)


def _geometry(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """How finely the model looks: sizes that its limits follow from."""
    side = config["vision_config"]["image_size"]
    processor = folder / "processor_config.json"
    pictures = read_object(processor).get("image_processor", {}) if processor.is_file() else {}
    tiles = [height * width // side**2 for height, width in config.get("image_grid_pinpoints", [])]
    return {
        "side": side,
        "tiles": max(tiles, default=0),
        "kept": config["max_tiles"],
        "frames": pictures.get("max_video_frames", 32),
        "positions": config["text_config"]["max_position_embeddings"],
    }


def _describe_model(folder: Path, base_model: str | None) -> tuple[ModelCardData, dict[str, Any]]:
    config = read_object(folder / "config.json")
    recipe = read_recipe(folder)
    model = read_data("paper/model.json")
    source = (stored_origin(folder) or "").split("@")[0]
    official = source == model["repository"] and is_official_size(config) and not recipe
    common: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": TAGS}
    facts = {
        "official": official,
        "geometry": _geometry(folder, config),
        "settings": settings_table(recipe),
    }
    if not official:
        return ModelCardData(**common, base_model=base_model), facts
    scores = read_data("paper/scores.json")
    facts |= {
        "scores": scores,
        "scores_table": paper_table(),
        "stages_table": _stages_table(model["stages"]),
        "parity": parity_table(read_data("results/parity.json")),
    }
    datasets = dict.fromkeys(stage["dataset"] for stage in model["stages"] if "dataset" in stage)
    data = ModelCardData(
        **common,
        language=model["languages"],
        license="unknown",
        base_model=base_model or model["repository"],
        datasets=list(datasets),
        model_name="LLaDA-V",
        eval_results=paper_results(),
    )
    return data, facts


def _describe_adapter(folder: Path, base_model: str | None) -> tuple[ModelCardData, dict[str, Any]]:
    config = read_object(folder / ADAPTER_CONFIG)
    recorded = config.get("base_model_name_or_path")
    base = base_model or (recorded if is_hub_id(recorded) else None)
    kind = str(config.get("peft_type") or "").lower()
    data = ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        tags=[*TAGS, kind] if kind.isalnum() else TAGS,
    )
    return data, {
        "base_model": base,
        "base": json.dumps(base or "BASE"),
        "adapter": settings_table(adapter_settings(config)),
        "settings": settings_table(read_recipe(folder)),
    }


def _describe_bundled(folder: Path, base_model: str | None) -> tuple[ModelCardData, dict[str, Any]]:
    shipped = _digest(folder) == _digest(BUNDLED_CHECKPOINT)
    config = read_object(folder / "config.json")
    data = ModelCardData(
        language="en",
        license="apache-2.0" if shipped else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=TAGS,
        base_model=base_model,
    )
    facts = {
        "shipped": shipped,
        "geometry": _geometry(folder, config),
        "evaluation": "",
        "stages": "",
        "decoding": "",
        "infilling": "",
        "sheets": shipped and all((folder / name).is_file() for name in SHEETS),
    }
    if shipped:
        decoding = read_data("results/decoding.json")
        facts |= {
            "evaluation": evaluation_table(read_data("results/evaluation.json")),
            "stages": stages_table(read_data("results/stages.json")),
            "decoding": decoding_table(decoding),
            "infilling": infilling_table(decoding),
        }
    return data, facts


def _digest(folder: Path) -> str | None:
    """Of the one file of weights, or None if there is none of that name."""
    path = folder / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
