"""Model cards claim what the folder or a data file says, their metadata is valid, and their snippets run."""

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, metadata_eval_result
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from safetensors.torch import load_file, save_file

import python_process
from transformers_lladav import (
    BUNDLED_CHECKPOINT,
    LladaVConfig,
    LladaVForMaskedDiffusion,
    LladaVProcessor,
    card_facts,
    cards,
)
from transformers_lladav.cards import detect_kind, paper_results, paper_table, render_card
from transformers_lladav.result_tables import SUITE_TASKS
from transformers_lladav.shape_scenes import make_scene, render_scene

ROOT = Path(__file__).parent.parent
# arXiv:2505.16933, as the specification of this project quotes them.
PAPER = {
    "MMMU": 48.6,
    "MMMU-Pro (standard)": 35.2,
    "MMMU-Pro (vision)": 18.6,
    "MMStar": 60.1,
    "SeedBench": 74.8,
    "MMBench": 82.9,
    "MathVerse (testmini, vision)": 28.5,
    "AI2D": 77.8,
    "ChartQA": 78.3,
    "DocVQA": 83.9,
    "InfoVQA": 66.3,
    "RealWorldQA": 63.2,
    "MLVU": 59.4,
    "VideoMME": 56.1,
    "MuirBench": 48.3,
}


@pytest.fixture
def adapter_folder(tmp_path):
    """A PEFT folder as it might come out of a training run."""
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "somebody/base",
        "r": 7,
        "lora_alpha": 13,
        "lora_dropout": 0.0,
        "use_dora": False,
        "target_modules": r".*\.(q_proj|v_proj)",
        "modules_to_save": ["multi_modal_projector"],
        "task_type": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a.lora_A.weight": torch.zeros(7, 100)}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def released(converted_folder, tmp_path, monkeypatch):
    """A folder that says it holds the released tensors, and is taken to have their sizes."""
    monkeypatch.setattr(cards, "is_official_size", lambda config: True)
    folder = Path(shutil.copytree(converted_folder, tmp_path / "released"))
    metadata = {"format": "pt", "converted_from": "GSAI-ML/LLaDA-V@0123abc"}
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata=metadata)
    return folder


@pytest.fixture
def official(released):
    """The card of the released model."""
    return render_card(released, repo_id="somebody/LLaDA-V-hf")


def code_blocks(text, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_committed_card_is_fresh():
    committed = (BUNDLED_CHECKPOINT / "README.md").read_text(encoding="utf-8")
    assert render_card(BUNDLED_CHECKPOINT).content == committed, "run `python model_cards/render_card.py`"


def test_the_papers_scores_are_metadata_with_their_source(official):
    name, results = model_index_to_eval_results(ModelCard(official.content).data.to_dict()["model-index"])
    assert name == "LLaDA-V"
    assert {result.dataset_name: result.metric_value for result in results} == PAPER
    assert len({result.unique_identifier for result in results}) == len(PAPER)
    for result in results:
        assert (result.source_url, result.verified) == ("https://arxiv.org/abs/2505.16933", None)
        assert "paper" in result.source_name
        assert "reported" in result.metric_name
    assert paper_results() == results


def test_the_papers_scores_have_the_shape_of_metadata_eval_result(official):
    made = metadata_eval_result(
        model_pretty_name="LLaDA-V",
        task_pretty_name="",
        task_id="image-text-to-text",
        metrics_pretty_name="score reported by the authors",
        metrics_id="score",
        metrics_value=48.6,
        dataset_pretty_name="MMMU",
        dataset_id="mmmu",
    )["model-index"][0]
    ours = ModelCard(official.content).data.to_dict()["model-index"][0]
    entry = made["results"][0]
    del entry["task"]["name"], entry["metrics"][0]["verified"]
    entry["source"] = {"name": "LLaDA-V paper, arXiv:2505.16933", "url": "https://arxiv.org/abs/2505.16933"}
    assert ours["results"][0] == entry
    assert made["name"] == ours["name"]


def test_the_papers_table_shows_scores_beside_the_settings_they_were_measured_with():
    rows = {row.split(" | ")[0].strip("| "): row for row in paper_table().splitlines()[2:]}
    assert list(rows) == list(PAPER)
    assert all(f" {score} " in rows[name] for name, score in PAPER.items())
    assert "| 32 / 32 / 16 |  | `/no_think` |" in rows["DocVQA"]
    assert r'| 16 / 16 / 16 | `"\n"` | `/no_think` |' in rows["ChartQA"]
    assert "| 64 / 64 / 32 |  | `/think` |" in rows["MathVerse (testmini, vision)"]


def test_the_papers_numbers_and_ours_are_never_in_one_table(official):
    ours = cards.parity_table(cards.read_data("results/parity.json")).splitlines()
    text = official.text
    assert ours[2] in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    holding = [{"paper": "48.6" in table, "ours": ours[2] in table} for table in tables]
    assert {"paper": True, "ours": False} in holding
    assert {"paper": False, "ours": True} in holding
    assert {"paper": True, "ours": True} not in holding
    assert "**not** repeated" in text
    assert "MathVista" not in official.data.to_yaml()
    assert not re.search(r"50\.6|59\.7", text)


def test_what_is_known_of_the_released_weights(official):
    data = official.data.to_dict()
    assert data["base_model"] == "GSAI-ML/LLaDA-V"
    assert data["license"] == "unknown"
    assert data["language"] == ["en", "zh"]
    assert data["pipeline_tag"] == "image-text-to-text"
    assert data["library_name"] == "transformers"
    assert len(data["datasets"]) == 3
    assert "not stated on the Hub" in official.text
    assert "GSAI-ML/LLaDA-8B-Instruct is MIT" in official.text
    assert "google/siglip2-so400m-patch14-384 is Apache-2.0" in official.text


def test_a_model_of_other_sizes_claims_nothing_of_the_paper(converted_folder):
    card = render_card(converted_folder, repo_id="somebody/tiny")
    data = card.data.to_dict()
    assert not {"model-index", "base_model", "license", "datasets", "language"} & set(data)
    assert "48.6" not in card.text
    assert "GSAI-ML" not in card.text


def test_only_the_sizes_of_the_released_model_are_official():
    sizes = cards.read_data("paper/model.json")["sizes"]
    assert sizes["text_config"]["hidden_size"] == 4096
    assert cards.is_official_size({**sizes, "model_type": "lladav"})
    assert cards.is_official_size(LladaVConfig().to_dict())
    for part, name in (("text_config", "num_hidden_layers"), ("vision_config", "hidden_size")):
        other = {**sizes, part: {**sizes[part], name: 3}}
        assert not cards.is_official_size(other)
    assert not cards.is_official_size({})


def test_the_sizes_alone_claim_nothing_of_the_paper(converted_folder, monkeypatch):
    monkeypatch.setattr(cards, "is_official_size", lambda config: True)
    assert "48.6" not in render_card(converted_folder).content


def test_what_was_saved_by_a_training_claims_nothing_of_the_paper(released):
    LladaVForMaskedDiffusion.from_pretrained(released).save_pretrained(released)
    card = render_card(released)
    assert "48.6" not in card.text
    assert "base_model" not in card.data.to_dict()


def test_a_model_that_was_trained_further_shows_its_settings_and_no_scores(released):
    folder = released
    (folder / "recipe.json").write_text('{"lr": 2e-05, "adapter": {"rank": 4}, "frozen": ["a", "b"], "notes": null}')
    (folder / "all_results.json").write_text('{"eval_loss": 1.25, "history": [{"loss": 3}]}')
    card = render_card(folder)
    for row in ("| `lr` | `2e-05` |", "| `adapter.rank` | `4` |", "| `frozen` | `a, b` |", "| `eval_loss` | `1.25` |"):
        assert row in card.text
    assert "notes" not in card.text
    assert "history" not in card.text
    assert "model-index" not in card.data.to_dict()
    assert "48.6" not in card.text


def test_sizes_are_those_of_the_tensors(converted_folder):
    tensors = load_file(converted_folder / "model.safetensors").values()
    weights = card_facts.read_weights(converted_folder)
    assert weights.parameters == sum(tensor.numel() for tensor in tensors)
    assert weights.nbytes == 2 * weights.parameters
    assert weights.dtype_text == "bfloat16"
    assert weights.half_text == ""
    assert f"{weights.parameters / 1e6:.2f} million parameters in bfloat16" in render_card(converted_folder).text


@pytest.mark.parametrize(
    ("parameters", "dtypes", "nbytes", "texts"),
    [
        (8_430_000_000, {torch.bfloat16: 1}, 16_860_000_000, ("8.43 billion", "bfloat16", "16.86 GB", "")),
        (1_000_000, {torch.float32: 1}, 4_000_000, ("1.00 million", "float32", "4.0 MB", "2.0 MB")),
        (950, {torch.float32: 1, torch.float16: 2}, 1900, ("950", "float16 and float32", "1.9 kB", "")),
    ],
)
def test_sizes_in_words(parameters, dtypes, nbytes, texts):
    weights = card_facts.Weights(parameters, nbytes, dtypes)
    assert (weights.parameters_text, weights.dtype_text, weights.size_text, weights.half_text) == texts


def test_an_adapters_card_holds_what_its_files_say_and_nothing_else(adapter_folder):
    (adapter_folder / "recipe.json").write_text('{"learning_rate": 0.0003}')
    card = render_card(adapter_folder, repo_id="somebody/my-adapter")
    data = card.data.to_dict()
    assert data["base_model"] == "somebody/base"
    assert data["library_name"] == "peft"
    assert data["tags"][-1] == "lora"
    assert not {"license", "datasets", "language", "model-index"} & set(data)
    for row in (
        "| `r` | `7` |", "| `lora_alpha` | `13` |", r"| `target_modules` | `.*\.(q_proj\|v_proj)` |",
        "| `modules_to_save` | `multi_modal_projector` |", "| `learning_rate` | `0.0003` |",
    ):  # fmt: skip
        assert row in card.text
    assert "use_dora" not in card.text
    assert "task_type" not in card.text
    assert "700 parameters in float32 (2.8 kB)" in card.text
    assert 'PeftModel.from_pretrained(base, "somebody/my-adapter")' in card.text
    (adapter_folder / "recipe.json").unlink()
    assert "## Training" not in render_card(adapter_folder).text


@pytest.mark.parametrize("base", [None, "", "/runs/base", "../base", "not an id"])
def test_a_base_model_that_is_not_on_the_hub_is_left_out(adapter_folder, base):
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    (adapter_folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    card = render_card(adapter_folder)
    assert "base_model" not in card.data.to_dict()
    assert 'from_pretrained("BASE"' in card.text
    assert not base or base not in card.text
    named = render_card(adapter_folder, base_model="GSAI-ML/LLaDA-V")
    assert named.data.base_model == "GSAI-ML/LLaDA-V"
    assert "not stated on the Hub" in named.text


def test_what_files_say_cannot_leave_its_cell():
    table = card_facts.settings_table({"a|b": "x|y\n# title", "c": "`code`", "d": True, "e": [1, 2], "f": 0.1 + 0.2})
    assert table.splitlines()[2:] == [
        r"| `a\|b` | `x\|y # title` |", "| `c` | `` `code` `` |", "| `d` | `true` |", "| `e` | `1, 2` |",
        "| `f` | `0.3` |",
    ]  # fmt: skip
    assert [card_facts.cell(text) for text in ("a``b", "`", "``` c")] == ["``` a``b ```", "`` ` ``", "```` ``` c ````"]


def test_results_beside_the_weights_are_shown_as_tables(adapter_folder):
    shutil.copy(ROOT / "model_cards" / "results" / "evaluation.json", adapter_folder / "evaluation.json")
    text = render_card(adapter_folder).text
    assert "From `evaluation.json` in this repository" in text
    assert cards.evaluation_table(cards.read_data("results/evaluation.json")) in text


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": [{"task": []}, 5]},
        {"tasks": [{"task": "suite:test"}, {"task": "suite:unseen_pairs"}]},
        {"tasks": [{"task": name, "questions": 1, "kinds": [{"kind": "new"}]} for name in SUITE_TASKS[:2]]},
        {"command": None},
    ],
    ids=["no tasks", "no kinds", "another kind", "no command"],
)
def test_results_that_only_look_like_those_of_the_suite_are_shown_as_they_are(adapter_folder, change):
    document = json.loads((ROOT / "model_cards" / "results" / "evaluation.json").read_text()) | change
    kept = {name: value for name, value in document.items() if value is not None} | {"note": "by hand"}
    (adapter_folder / "evaluation.json").write_text(json.dumps(kept))
    assert "| `note` | `by hand` |" in render_card(adapter_folder).text


def test_another_small_model_does_not_get_the_bundled_ones_results(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(BUNDLED_CHECKPOINT, folder)
    model = LladaVForMaskedDiffusion.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(folder, save_original_format=False)
    assert detect_kind(folder) == "bundled"
    text = render_card(folder).text
    measured = cards.evaluation_table(cards.read_data("results/evaluation.json")).splitlines()[2]
    assert measured in render_card(BUNDLED_CHECKPOINT).text
    assert measured not in text
    assert "Apache-2.0: code, weights" not in text
    assert "Decoding" not in text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "llava_llada"}', "official release; convert it first"),
        ('{"model_type": "llama"}', "a model of type 'llama', not 'lladav'"),
        ("[]", "holds a list, not an object"),
        ("{", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_other_folders_are_refused(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=re.escape(message)):
        render_card(tmp_path)


def test_weights_that_cannot_be_read_are_not_described(converted_folder, tmp_path):
    shutil.copy(converted_folder / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((converted_folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        render_card(tmp_path)


def run_block(code, folder):
    """What a snippet prints, run beside a picture."""
    render_scene(make_scene("demo", 0), 200).save(folder / "picture.jpg")
    run = python_process.run(["-c", code], cwd=folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module")
def quick_folder(converted_folder, tmp_path_factory):
    """The converted model with eight tokens to write, which a random model does not end early."""
    folder = tmp_path_factory.mktemp("quick") / "model"
    shutil.copytree(converted_folder, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"max_new_tokens": 8, "block_length": 8, "max_denoising_steps": 4, "eos_token_id": 5}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def expected_answer(quick_folder):
    """What the package makes of the question in the snippets."""
    picture = render_scene(make_scene("demo", 0), 200)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    model = LladaVForMaskedDiffusion.from_pretrained(quick_folder, dtype="auto")
    processor = LladaVProcessor.from_pretrained(quick_folder)
    question = {"type": "text", "text": "What is in this picture?"}
    chat = [{"role": "user", "content": [{"type": "image", "image": Image.open(buffer)}, question]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return processor.decode(model.generate(**inputs, return_dict_in_generate=True).answers[0])


@pytest.mark.parametrize("number", range(3))
def test_snippets_of_a_models_card_answer(quick_folder, expected_answer, tmp_path, number, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    blocks = code_blocks(render_card(quick_folder, repo_id="somebody/tiny").content)
    assert len(blocks) == 3
    assert [block.count("trust_remote_code=True") for block in blocks] == [1, 2, 0]
    assert len(blocks[0].splitlines()) == 3
    assert len([line for line in blocks[1].splitlines() if line and not line.startswith(" ")]) == 7
    code = blocks[number].replace("somebody/tiny", str(quick_folder))
    assert code != blocks[number]
    assert len(expected_answer) > 8
    # Eight tokens in four passes.
    assert run_block(code, tmp_path).removesuffix("\n") == (
        expected_answer if number == 0 else f"{expected_answer} 2.0"
    )


def test_the_snippet_of_an_adapters_card_answers(quick_folder, expected_answer, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = LladaVForMaskedDiffusion.from_pretrained(quick_folder, dtype="auto")
    torch.manual_seed(0)
    settings = LoraConfig(r=2, lora_alpha=64, target_modules=r".*language_model\..*\.v_proj", init_lora_weights=False)
    get_peft_model(base, settings).save_pretrained(tmp_path / "adapter")
    card = render_card(tmp_path / "adapter", repo_id="somebody/adapter", base_model="somebody/base")
    (code,) = code_blocks(card.content)
    for name, folder in (("somebody/adapter", tmp_path / "adapter"), ("somebody/base", quick_folder)):
        assert name in code
        code = code.replace(name, str(folder))
    answer = run_block(code, tmp_path)
    assert answer.endswith(" 2.0\n")
    assert answer != f"{expected_answer} 2.0\n"


def test_snippets_of_the_bundled_card_answer(tmp_path):
    (code,) = code_blocks(render_card(BUNDLED_CHECKPOINT).content)
    assert re.search(r"one|two|three|red|green|blue|yellow|purple|orange", run_block(code, tmp_path))


def render_script():
    spec = importlib.util.spec_from_file_location("render_card", ROOT / "model_cards" / "render_card.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_prints_and_checks(converted_folder, tmp_path, capsys):
    script = render_script().main
    card = tmp_path / "card.md"
    folder = str(converted_folder)
    assert script([folder, "--repo-id", "somebody/tiny", "--output", str(card)]) == 0
    assert card.read_text() == render_card(converted_folder, repo_id="somebody/tiny").content
    assert script([folder, "--stdout"]) == 0
    assert capsys.readouterr().out == render_card(converted_folder).content
    assert script([folder, "--check"]) == 1
    assert script(["--check"]) == 0
    assert script([folder, "--kind", "adapter"]) == 1
    assert "adapter_config.json cannot be read" in capsys.readouterr().err
    assert not (converted_folder / "README.md").exists()


def test_an_installed_package_renders_the_same(tmp_path):
    """The wheel puts files where pyproject.toml says; rendering from there needs nothing of the repository."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for included in wheel["only-include"]:
        prefix = next(prefix for prefix in wheel["sources"] if included.startswith(prefix))
        target = tmp_path / wheel["sources"][prefix] / included.removeprefix(prefix).lstrip("/")
        shutil.copytree(ROOT / included, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    code = (
        "import sys, transformers_lladav, transformers_lladav.cards as cards\n"
        "assert cards.card_folder().is_relative_to(sys.argv[1]), cards.card_folder()\n"
        "sys.stdout.write(cards.render_card(transformers_lladav.BUNDLED_CHECKPOINT).content)\n"
        "cards.paper_results(), cards.paper_table(), cards.read_data('results/parity.json')\n"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == (BUNDLED_CHECKPOINT / "README.md").read_text(encoding="utf-8")
