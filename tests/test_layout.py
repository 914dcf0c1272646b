"""The architecture, as a table: who may import whom, how large a module or function may grow, what has a test."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "transformers_lladav"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
SHIPPED = {name for name in MODULES if name.endswith("_lladav")}

MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 50
MAX_FORWARD_LINES = 80

# Modules of ours that each module may import. A shipped module may import shipped modules named here and nothing else.
MAY_IMPORT = {
    "configuration_lladav": {"official_config_lladav", "official_folder_lladav", "tiling_lladav"},
    "tiling_lladav": set(),
    "diffusion_lladav": set(),
    "sampling_lladav": set(),
    "commit_rules_lladav": set(),
    "constraints_lladav": set(),
    "stopping_lladav": set(),
    "canvas_lladav": set(),
    "presets_lladav": set(),
    "generation_configuration_lladav": {"commit_rules_lladav", "sampling_lladav"},
    "chat_template_lladav": set(),
    "chat_text_lladav": set(),
    "checkpoint_keys_lladav": set(),
    "features_lladav": {"tiling_lladav"},
    "opening_lladav": set(),
    "image_processing_lladav": {"opening_lladav", "tiling_lladav"},
    "processing_lladav": {
        "chat_template_lladav",
        "chat_text_lladav",
        "image_processing_lladav",
        "official_processor_lladav",
        "tiling_lladav",
    },
    "denoising_lladav": {
        "forward_passes_lladav",
        "commit_rules_lladav",
        "constraints_lladav",
        "generation_configuration_lladav",
        "sampling_lladav",
        "stopping_lladav",
    },
    "generation_lladav": {
        "canvas_lladav",
        "commit_rules_lladav",
        "constraints_lladav",
        "denoising_lladav",
        "forward_passes_lladav",
        "generation_configuration_lladav",
        "presets_lladav",
        "static_loop_lladav",
        "stopping_lladav",
    },
    "static_loop_lladav": {
        "denoising_cache_lladav",
        "denoising_lladav",
        "forward_passes_lladav",
        "generation_configuration_lladav",
        "sampling_lladav",
    },
    "scoring_lladav": {"canvas_lladav", "generation_lladav", "sampling_lladav"},
    "modeling_outputs_lladav": set(),
    "denoising_cache_lladav": set(),
    "loading_adapters_lladav": set(),
    "modeling_text_lladav": {"configuration_lladav", "denoising_cache_lladav", "loading_adapters_lladav"},
    "forward_passes_lladav": {"denoising_cache_lladav", "modeling_text_lladav"},
    "modeling_lladav": {
        "checkpoint_keys_lladav",
        "configuration_lladav",
        "diffusion_lladav",
        "features_lladav",
        "generation_configuration_lladav",
        "generation_lladav",
        "modeling_outputs_lladav",
        "modeling_text_lladav",
        "scoring_lladav",
        "tiling_lladav",
    },
    "official_config_lladav": set(),
    "official_folder_lladav": {"checkpoint_keys_lladav", "official_config_lladav"},
    "official_processor_lladav": {
        "configuration_lladav",
        "image_processing_lladav",
        "official_config_lladav",
        "official_folder_lladav",
    },
    "official_export": {"chat_text_lladav", "configuration_lladav", "official_config_lladav"},
    "parts_config": {"configuration_lladav", "official_config_lladav"},
    "publishing": SHIPPED,
    "files": set(),
    "strict_json": set(),
    "weights": {"checkpoint_keys_lladav", "strict_json"},
    "verification": SHIPPED | {"card_facts", "publishing", "weights"},
    "comparison": {"weights"},
    "sources": {"weights"},
    "contact_sheets": set(),
    "splits": set(),
    "shape_scenes": {"splits"},
    "scene_questions": {"shape_scenes"},
    "scene_changes": {"scene_questions", "shape_scenes", "splits"},
    "lettering": set(),
    "signs": {"lettering", "shape_scenes", "splits"},
    "charts": {"shape_scenes", "splits"},
    "suite": {"charts", "scene_changes", "scene_questions", "shape_scenes", "signs", "splits"},
    "tiny_tower": {"charts", "lettering", "shape_scenes", "signs", "suite"},
    "recipes": set(),
    "recipe_changes": {"recipes", "strict_json"},
    "trainable": {"recipes"},
    "held_out": {"media"},
    "run_records": set(),
    "processes": set(),
    "run_settings": {"files", "processes", "recipes", "run_records"},
    "training_model": {"adapter_fit", "quantization", "recipes", "trainable"},
    "training_callbacks": {"files", "processes", "trainable"},
    "trainer": {"batches", "collation", "files", "held_out", "processes", "recipes", "samples", "trainable"},
    "training_results": {"adapter_fit", "cards", "files", "publishing", "recipes", "trainer", "training_model"},
    "train": {
        "data",
        "files",
        "held_out",
        "processes",
        "record_files",
        "recipes",
        "run_settings",
        "samples",
        "trainable",
        "trainer",
        "training_callbacks",
        "training_data",
        "training_model",
        "training_results",
    },
    "dry_run": {"training_memory"},
    "cli_training": {
        "__init__",
        "cli_console",
        "dry_run",
        "launching",
        "recipe_changes",
        "recipes",
        "run_settings",
        "train",
    },
    "quantization": set(),
    "training_activations": {"modeling_lladav", "recipes", "trainable"},
    "training_memory": {
        "diffusion_lladav",
        "quantization",
        "recipes",
        "trainable",
        "training_activations",
        "training_model",
    },
    "answering_memory": {"configuration_lladav", "modeling_lladav", "quantization"},
    "eval_metrics": set(),
    "eval_tasks": {"eval_metrics", "media", "record_files", "records", "splits", "strict_json", "suite"},
    "eval_survey": {"eval_tasks", "media", "record_files"},
    "eval_asking": {
        "eval_metrics",
        "eval_survey",
        "eval_tasks",
        "generation_configuration_lladav",
        "media",
        "presets_lladav",
        "prompt_view",
    },
    "eval_folder": {"eval_asking", "files", "run_records"},
    "eval_results": {
        "contact_sheets",
        "eval_asking",
        "eval_metrics",
        "eval_tasks",
        "files",
        "image_processing_lladav",
        "media",
    },
    "eval_run": {
        "__init__",
        "asking",
        "eval_asking",
        "eval_folder",
        "eval_results",
        "eval_survey",
        "eval_tasks",
        "files",
        "processes",
        "quantization",
        "sources",
    },
    "cli_evaluation": {
        "cli_asking",
        "cli_console",
        "eval_asking",
        "eval_metrics",
        "eval_results",
        "eval_run",
        "eval_tasks",
        "record_files",
    },
    "tiny_model": SHIPPED | {"suite"},
    "train_tower": {
        "files",
        "processes",
        "publishing",
        "recipes",
        "run_settings",
        "tiny_tower",
        "train",
        "trainer",
        "training_callbacks",
        "training_results",
    },
    "tiny_stages": SHIPPED
    | {"files", "processes", "publishing", "recipes", "run_records", "run_settings", "splits", "suite"}
    | {"tiny_model", "train", "train_tower"},
    "tiny_results": SHIPPED
    | {"files", "publishing", "run_records", "run_settings", "splits", "tiny_stages", "tiny_tower", "train"}
    | {"training_callbacks", "training_results"},
    "cli_tiny": {"cli_console", "cli_training", "processes", "tiny_results", "tiny_stages"},
    "twins": {
        "batches",
        "collation",
        "diffusion_lladav",
        "modeling_text_lladav",
        "recipes",
        "rows",
        "samples",
        "trainable",
    },
    "labels": {"diffusion_lladav"},
    "noise": {"diffusion_lladav"},
    "packing": set(),
    "samples": set(),
    "launching": set(),
    "lengths": {"data", "media", "bare_prompts", "prompt_view", "record_files", "samples"},
    "bare_prompts": {"chat_text_lladav", "diffusion_lladav", "recipes"},
    "rows": {"diffusion_lladav"},
    "collation": {"bare_prompts", "diffusion_lladav", "labels", "media", "noise"}
    | {"packing", "recipes", "rows", "samples"},
    "batches": {"noise", "samples"},
    "streams": {"data", "media", "noise", "record_files", "records", "samples"},
    "training_data": {"data", "lengths", "media", "noise", "record_files", "records", "samples", "streams"},
    "registration": set(),
    "assistant": {"__init__", "adapters", "quantization", "recording"},
    "asking": {
        "assistant",
        "constraints_lladav",
        "denoising_lladav",
        "generation_configuration_lladav",
        "image_processing_lladav",
        "presets_lladav",
        "recording",
        "streaming",
    },
    "untrusted_pictures": set(),
    "chatting": {"asking", "files", "streaming"},
    "answer_queue": {"assistant", "eval_tasks", "presets_lladav", "streaming"},
    "chat_requests": {"assistant", "eval_asking", "opening_lladav", "presets_lladav", "untrusted_pictures"},
    "web_view": {"streaming"},
    "web_talk": {"answer_queue", "assistant", "eval_asking", "streaming", "untrusted_pictures", "web_view"},
    "web": {"suite", "web_talk", "web_view"},
    "server": {"answer_queue", "assistant", "chat_requests", "eval_asking", "streaming"},
    "streaming": set(),
    "recording": {"denoising_lladav", "files", "recording_film", "recording_page", "streaming"},
    "recording_film": {"streaming"},
    "recording_page": set(),
    "demo": {"asking", "scene_questions", "shape_scenes"},
    # One module of commands was full: what answers and what publishes have modules of their own.
    "cli": {
        "asking",
        "cli_adapters",
        "cli_asking",
        "cli_batch",
        "cli_bench",
        "cli_console",
        "cli_data",
        "cli_evaluation",
        "cli_paper_table",
        "cli_publishing",
        "cli_serving",
        "cli_tiny",
        "cli_training",
        "demo",
        "files",
        "presets_lladav",
        "shape_scenes",
        "streaming",
    },
    "batch_records": {"eval_tasks", "media", "record_files", "records"},
    "predicting": {
        "asking",
        "eval_asking",
        "image_processing_lladav",
        "media",
        "prompt_view",
        "record_files",
        "records",
    },
    "batch_run": {
        "asking",
        "batch_records",
        "eval_asking",
        "eval_run",
        "eval_tasks",
        "files",
        "media",
        "predicting",
        "processes",
        "prompt_view",
        "record_files",
        "records",
        "run_records",
        "sources",
    },
    "cli_batch": {"batch_run", "cli_asking", "cli_console", "cli_evaluation", "eval_asking", "eval_tasks"},
    # What is known of lmms-eval's tasks stands apart from the module that imports lmms-eval.
    "lmms_eval_settings": {"eval_asking", "generation_configuration_lladav", "presets_lladav"},
    "lmms_eval_plugin": set(),
    "lmms_eval_model": {
        "asking",
        "eval_asking",
        "eval_tasks",
        "generation_configuration_lladav",
        "lmms_eval_settings",
        "media",
        "predicting",
        "presets_lladav",
        "processes",
        "prompt_view",
        "record_files",
        "sources",
    },
    "paper_table": {"cards", "files", "lmms_eval_model", "lmms_eval_settings", "run_records", "sources"},
    "cli_paper_table": {"cli_console", "paper_table"},
    "bench_loops": set(),
    "bench": {"bench_loops", "configuration_lladav", "modeling_lladav", "presets_lladav"},
    "bench_vision": {"bench", "configuration_lladav", "modeling_lladav"},
    "bench_run": {"__init__", "bench", "bench_vision", "configuration_lladav", "files"},
    "cli_bench": {"bench_run", "cli_console", "cli_training"},
    "cli_console": set(),
    "cli_asking": {"asking", "chatting", "cli_console", "streaming"},
    "cli_publishing": {"cli_console", "pushing"},
    "cli_serving": {"__init__", "chat_requests", "cli_asking", "cli_console", "cli_evaluation", "eval_asking"}
    | {"server", "web", "web_talk"},
    "cli_data": {
        "__init__",
        "cli_console",
        "data",
        "data_preview",
        "data_report",
        "files",
        "media",
        "prompt_view",
        "recipes",
        "record_files",
    },
    "record_files": {"strict_json"},
    "media": {"image_processing_lladav", "record_files"},
    "records": {"media", "record_files"},
    "data": {"media", "record_files", "records"},
    "prompt_view": {
        "chat_text_lladav",
        "diffusion_lladav",
        "image_processing_lladav",
        "labels",
        "media",
        "bare_prompts",
        "tiling_lladav",
    },
    "data_report": {"data", "media", "prompt_view", "record_files", "records"},
    "data_preview": {
        "diffusion_lladav",
        "image_processing_lladav",
        "media",
        "prompt_view",
        "record_files",
        "records",
    },
    "result_tables": set(),
    "card_facts": {"strict_json", "weights"},
    "cards": {
        "__init__",
        "card_facts",
        "official_config_lladav",
        "presets_lladav",
        "result_tables",
        "sources",
        "weights",
    },
    "adapter_checks": {"card_facts", "sources", "weights"},
    "adapter_fit": {"adapter_checks", "card_facts", "files", "modeling_lladav", "trainable", "weights"},
    "adapters": {"adapter_fit", "card_facts", "files", "modeling_lladav", "publishing", "sources", "weights"},
    "cli_adapters": {"adapters", "cli_console"},
    "pushing": {
        "__init__",
        "adapter_checks",
        "card_facts",
        "cards",
        "publishing",
        "verification",
        "weights",
    },
    "__main__": {"cli"},
    "__init__": SHIPPED | {"recording", "registration", "streaming"},
}
# Modules whose tests stand with those of what they are a part of.
TESTED_WITH = {
    "adapter_checks": "pushing",
    "adapter_fit": "adapters",
    "assistant": "asking",
    "cli_adapters": "adapters",
    "card_facts": "cards",
    "cli_asking": "cli",
    "cli_console": "cli",
    "cli_paper_table": "paper_table",
    "cli_publishing": "pushing",
    "data_preview": "cli_data",
    "eval_folder": "eval_run",
    "eval_survey": "eval_tasks",
    "data_report": "cli_data",
    "bare_prompts": "collation",
    "rows": "collation",
    "streams": "training_data",
    "cli_tiny": "tiny_stages",
    "tiny_results": "tiny_stages",
    "train_tower": "tiny_stages",
    "lmms_eval_plugin": "lmms_eval_model",
    "prompt_view": "cli_data",
    "record_files": "data",
    "records": "data",
    "result_tables": "readme",
    "training_activations": "training_memory",
    "denoising_lladav": "generation_lladav",
    "loading_adapters_lladav": "adapters",
    "modeling_outputs_lladav": "modeling_lladav",
    "opening_lladav": "image_processing_lladav",
    "modeling_text_lladav": "modeling_lladav",
    "official_export": "export_official",
    "recording_film": "recording",
    "recording_page": "recording",
}
# Data that options are made of: the standard library and nothing else.
LIGHT = {"recipes"}
SHIPPED_THIRD_PARTY = {"torch", "transformers", "tokenizers", "numpy", "PIL", "huggingface_hub", "safetensors"}
# base64, http, io, time and urllib: pictures from URLs are fetched and decoded here, header first, because
# transformers would decode them before anybody could look at their size.
STANDARD_LIBRARY_IN_SHIPPED = {
    "base64", "collections", "concurrent", "copy", "dataclasses", "difflib", "functools", "http", "inspect", "io",
    "itertools", "json", "math", "os", "re", "reprlib", "time", "typing", "urllib",
}  # fmt: skip


def tree(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def own_imports(module):
    """Names of our modules that a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= (
                {node.module}
                if node.module
                else {alias.name if alias.name in MODULES else "__init__" for alias in node.names}
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers_lladav"):
            names.add(node.module.removeprefix("transformers_lladav").removeprefix(".") or "__init__")
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_those_of_the_table(module):
    assert module in MAY_IMPORT, f"{module} is new: say in MAY_IMPORT what it may import"
    assert own_imports(module) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", sorted(SHIPPED))
def test_shipped_modules_stand_alone(module):
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            roots = {node.module.split(".")[0]}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{module}:{node.lineno} imports from outside the folder"
            assert node.module, f"{module}:{node.lineno}: `from . import x` is not copied with a checkpoint"
            assert node.module in SHIPPED
            continue
        else:
            continue
        assert roots <= SHIPPED_THIRD_PARTY | STANDARD_LIBRARY_IN_SHIPPED, f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_what_the_command_line_imports_at_start_is_light(module):
    for node in ast.walk(tree(module)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module}:{node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names), f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("cli")])
def test_the_command_line_imports_nothing_heavy_at_start(module):
    """`lladav --help` needs every command's options, so modules of commands are imported at start and stay light."""
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            light = node.module in LIGHT or (node.module or "").startswith("cli_")
            assert light, f"{module} imports our modules inside its handlers"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {name.split(".")[0] for name in names} <= {"rich", "typer", *sys.stdlib_module_names}


def lines_of(function):
    """Lines of a function without its docstring."""
    docstring = ast.get_docstring(function, clean=False)
    return function.end_lineno - function.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_small(module):
    lines = (PACKAGE / f"{module}.py").read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_MODULE_LINES, f"{module} has {lines} lines; it is asking to be two"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = lines_of(node)
            limit = MAX_FORWARD_LINES if node.name == "forward" else MAX_FUNCTION_LINES
            assert size <= limit, f"{module}.{node.name} has {size} lines"


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("__")])
def test_every_module_has_its_test_file(module):
    assert (ROOT / "tests" / f"test_{TESTED_WITH.get(module, module)}.py").exists()


def public_definitions(module):
    """Public functions, classes and methods of a module, each with whether somebody says what it is for."""
    parsed = tree(module)
    public = [node for node in parsed.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    public += [
        item
        for node in public
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for item in node.body
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for node in public:
        if node.name.startswith("_"):
            continue
        decorators = [ast.unparse(item) for item in node.decorator_list]
        generated = any(item.startswith("auto_docstring") or item.endswith(".setter") for item in decorators)
        described = node.name == "root" or node.name.endswith("Kwargs")
        yield node, bool(ast.get_docstring(node) or generated or described)


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module):
    assert ast.get_docstring(tree(module)), f"{module} does not say what it is for"
    for node, documented in public_definitions(module):
        assert documented, f"{module}.{node.name} has no docstring"


TEST_FILES = sorted(path.stem for path in (ROOT / "tests").glob("test_*.py"))


@pytest.mark.parametrize("name", TEST_FILES)
def test_test_files_say_in_a_line_what_they_prove(name):
    text = (ROOT / "tests" / f"{name}.py").read_text(encoding="utf-8")
    first = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    assert first.endswith("."), f"{name} begins with {first!r}; begin with a sentence in one line"
