"""Shared by all tests: one thread, no network, the official tiny model, and the table of deviations."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# Code of checkpoints is copied here before it runs; processes of a parallel run must not meet.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="lladav-modules-")

import gc
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import ImageFile
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase

import ecosystem
import parity
import python_process
from transformers_lladav import (
    BUNDLED_CHECKPOINT,
    LladaVConfig,
    LladaVForMaskedDiffusion,
    LladaVImageProcessor,
    LladaVProcessor,
    asking,
)

torch.set_num_threads(1)

REPORT = pytest.StashKey[parity.Report]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = parity.Report()
    for marker in ecosystem.MARKERS:
        config.addinivalue_line("markers", f"{marker}: of the shared tests of transformers")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)
    python_process.end()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the comparisons of a parallel run's worker to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = session.config.stash[REPORT].cases


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the comparisons of a worker."""
    node.config.stash[REPORT].cases += getattr(node, "workeroutput", {}).get("parity", [])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; run with `pytest -m slow`"))


def pytest_collection_finish() -> None:
    """Take the libraries' million objects out of garbage collection, which a training run asks for several times."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if path := os.environ.get("LLADAV_ECOSYSTEM_REPORT"):
        ecosystem.write_counts(Path(path), terminalreporter.stats)
    report = config.stash[REPORT]
    if not report.cases:
        return
    terminalreporter.section("deviation from the official implementation")
    terminalreporter.line(f"{'group':<38}{'cases':>6}  {'largest':>9}  {'allowed':>9}  case")
    for group, count, worst in report.groups():
        terminalreporter.line(
            f"{group:<38}{count:>6}  {worst['deviation']:>9.3g}  {worst['tolerance']:>9.3g}  {worst['case']}"
        )
    if path := os.environ.get("LLADAV_PARITY_REPORT"):
        Path(path).write_text(json.dumps(report.as_json(), indent=1) + "\n")


@pytest.fixture(autouse=True)
def _whole_pictures_only() -> None:
    """lmms-eval, once imported, lets Pillow take pictures that are cut off, in the whole process."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False


@pytest.fixture(scope="session")
def parity_report(request: pytest.FixtureRequest) -> parity.Report:
    """Takes every comparison with the official numbers."""
    return request.config.stash[REPORT]


@pytest.fixture(scope="session")
def official_tokenizer() -> PreTrainedTokenizerBase:
    """The stand-in tokenizer as the official release ships it, without placeholders."""
    return AutoTokenizer.from_pretrained(parity.OFFICIAL)


@pytest.fixture
def image_processor() -> LladaVImageProcessor:
    return LladaVImageProcessor()


@pytest.fixture(scope="session")
def processor() -> LladaVProcessor:
    return LladaVProcessor(LladaVImageProcessor(), AutoTokenizer.from_pretrained(parity.OFFICIAL))


@pytest.fixture(scope="session")
def tokenizer(processor: LladaVProcessor) -> PreTrainedTokenizerBase:
    return processor.tokenizer


@pytest.fixture(scope="session")
def mixed(processor: LladaVProcessor) -> tuple[list[BatchFeature], BatchFeature]:
    """Five samples of different kinds, alone and as one batch."""
    samples = parity.mixed_samples()
    alone = [processor(**sample, return_tensors="pt") for sample in samples]
    batch = processor(
        text=[sample["text"] for sample in samples],
        images=[sample.get("images", [[]])[0] for sample in samples],
        videos=[sample.get("videos", [[]])[0] for sample in samples],
        return_tensors="pt",
    )
    return alone, batch


OFFICIAL_KERNELS = {"text_config": "sdpa", "vision_config": "eager"}


def official_config() -> LladaVConfig:
    """Our configuration of the official tiny model: three vision layers of four are kept."""
    text = json.loads((parity.OFFICIAL / "config.json").read_text())
    vision = json.loads((parity.FOLDER / "checkpoint-siglip" / "config.json").read_text())["vision_config"]
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return LladaVConfig(
        text_config={name: text[name] for name in (*sizes, "num_key_value_heads", "max_position_embeddings")},
        vision_config={**vision, "num_hidden_layers": vision["num_hidden_layers"] - 1, "vision_use_head": False},
    )


@pytest.fixture(scope="session")
def model() -> LladaVForMaskedDiffusion:
    """The official tiny model in float32, its tensors renamed while they are loaded; do not train it.

    The kernels are those of the official code: its tower multiplies attention out. The tiny tower's rounding grows a
    hundredfold on the way to the logits, so that another kernel there can be seen in them.
    """
    loaded, info = LladaVForMaskedDiffusion.from_pretrained(
        parity.OFFICIAL,
        config=official_config(),
        dtype=torch.float32,
        attn_implementation=OFFICIAL_KERNELS,
        output_loading_info=True,
    )
    problems = {name: keys for name, keys in info.items() if keys}
    assert not problems, problems
    return loaded.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def converter() -> ModuleType:
    """The conversion script as a module."""
    path = Path(__file__).parent.parent / "conversion" / "convert_checkpoint.py"
    spec = importlib.util.spec_from_file_location("convert_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["convert_checkpoint"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def converted_folder(converter: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official tiny model as the converter writes it; do not change it."""
    folder = tmp_path_factory.mktemp("converted") / "lladav"
    return converter.convert(parity.OFFICIAL, folder, parity.FOLDER / "checkpoint-siglip" / "config.json")


@pytest.fixture
def kernels(model: LladaVForMaskedDiffusion) -> Iterator[Callable]:
    """Sets attention kernels by part of the model, for one test."""
    yield model.set_attn_implementation
    model.set_attn_implementation(OFFICIAL_KERNELS)


@pytest.fixture
def configured(model: LladaVForMaskedDiffusion) -> Callable:
    """A context in which the model's configuration has other values."""

    @contextmanager
    def change(**settings: object) -> Iterator[LladaVForMaskedDiffusion]:
        before = {name: getattr(model.config, name) for name in settings}
        try:
            for name, value in settings.items():
                setattr(model.config, name, value)
            yield model
        finally:
            for name, value in before.items():
                setattr(model.config, name, value)

    return change


def tiny_config(**changes: object) -> LladaVConfig:
    """A model of other sizes and token ids than LLaDA-V's: tiles of 56 pixels, 4 x 4 patches, 96 tokens."""
    text = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    }
    text.update(changes.pop("text_config", {}))
    settings = {
        "image_token_id": 90,
        "video_token_id": 91,
        "mask_token_id": 92,
        "output_vocab_size": 80,
        "suppressed_token_ids": [1, 3],
        "image_grid_pinpoints": [[56 * down, 56 * across] for across in (1, 2) for down in (1, 2)],
    }
    return LladaVConfig(text_config=text, vision_config=vision, **{**settings, **changes})


@pytest.fixture
def tiny_model() -> Callable[..., LladaVForMaskedDiffusion]:
    """Builds a small model with seeded weights, with changes to `tiny_config`."""

    def build(**changes: object) -> LladaVForMaskedDiffusion:
        torch.manual_seed(0)
        return LladaVForMaskedDiffusion(tiny_config(**changes)).eval()

    return build


@pytest.fixture(scope="session")
def bundled() -> asking.Assistant:
    """The bundled checkpoint in float32 with its processor; do not change it."""
    model = LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT, dtype=torch.float32).eval()
    return asking.Assistant(model, LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT))
