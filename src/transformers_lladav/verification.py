"""Is a checkpoint folder right? Tensors, ids, template and code, checked without loading the model.

Tensors are read one at a time. Nothing from the folder is executed: its code files are compared, not run.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .card_facts import ADAPTER_CONFIG
from .chat_template_lladav import build_chat_template
from .configuration_lladav import LladaVConfig
from .generation_configuration_lladav import LladaVGenerationConfig
from .official_config_lladav import OFFICIAL_MODEL_TYPE, translate_config
from .processing_lladav import LladaVProcessor
from .publishing import AUTO_MAP, ENTRY_MODULES, build_processor, code_files, model_shapes
from .weights import (
    CHUNK,
    Progress,
    StoredTensor,
    by_native_name,
    count_non_finite,
    read_json,
    read_tensors,
    scan_folder,
    tensor_problems,
)

# Settings that the image processor and the configuration share.
GEOMETRY = ("image_grid_pinpoints", "max_tiles", "newline_position", "single_tile_newline")
PROCESSOR_MAP = {"AutoProcessor": "processing_lladav.LladaVProcessor"}
MANY_LAYERS = 200  # more, without tensors for them, are not laid out
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
# A system message, so that a checkpoint may have another default one.
PROBE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}]},
    {"role": "assistant", "content": "A probe."},
    {"role": "user", "content": "And <image>\nthis?"},
]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: "error" for what makes the checkpoint wrong, "warning" for what somebody may have meant.
        topic: what it is about.
        text: what was found, and what can be done about it.
    """

    level: Literal["error", "warning", "ok"]
    topic: str
    text: str


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        folder: the checkpoint.
        layout: "native", "official" or "unknown".
        findings: in the order of checking.
        digests: sha256 of every tensor's bytes, by native name.
    """

    folder: Path
    layout: str
    findings: tuple[Finding, ...]
    digests: dict[str, str]

    @property
    def errors(self) -> list[Finding]:
        """What makes the checkpoint wrong."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What somebody may have meant."""
        return [finding for finding in self.findings if finding.level == "warning"]


class _Findings(list[Finding]):
    """Findings under construction."""

    def errors(self, topic: str, texts: list[str], fine: str) -> bool:
        """Add an error per text, or what is fine if there is none; whether there is none."""
        self.extend(Finding("error", topic, text) for text in texts)
        if not texts:
            self.append(Finding("ok", topic, fine))
        return not texts

    def warnings(self, topic: str, texts: list[str]) -> None:
        """Add a warning per text."""
        self.extend(Finding("warning", topic, text) for text in texts)


def verify(folder: Path, vision_config: Mapping[str, Any] | None = None, progress: Progress | None = None) -> Report:
    """Check a checkpoint folder, native or official.

    Args:
        folder: the checkpoint.
        vision_config: content of the vision tower's SigLIP configuration, for official folders whose tower is not
            SigLIP2-so400m.
        progress: told of the bytes done and of all.

    Returns:
        What was found; nothing is raised for a folder that is wrong.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    findings = _Findings()
    problems: list[str] = []
    stored = read_json(folder / "config.json", problems)
    layout = {"lladav": "native", OFFICIAL_MODEL_TYPE: "official"}.get(str(stored.get("model_type")), "unknown")
    if (folder / ADAPTER_CONFIG).is_file():
        problems.append("the folder holds an adapter, not a model")
    elif stored and layout == "unknown":
        problems.append(f"config.json has model_type={stored.get('model_type')!r}; LLaDA-V has 'lladav'")
    problems_of_files: list[str] = []
    tensors = by_native_name(scan_folder(folder, problems_of_files), problems_of_files)
    config = None if problems else _read_config(folder, layout, stored, tensors, vision_config, problems)
    findings.errors("config", problems, f"{layout} layout, {stored.get('model_type')}, readable and consistent")
    _check_tensors(findings, tensors, config, problems_of_files)
    digests = _check_values(findings, tensors, progress or _unwatched)
    if config is not None:
        _check_tying(findings, config, digests)
        if layout == "native":
            _check_processor(findings, folder, config)
            _check_generation(findings, folder, config)
            _check_auto_map(findings, folder, stored)
            _check_code(findings, folder)
        else:
            _check_official_tokenizer(findings, folder, config)
            _warn_of_code(findings, folder)
    return Report(folder, layout, tuple(findings), digests)


def _unwatched(done: int, total: int) -> None:
    """Nobody watches."""


def _read_config(
    folder: Path,
    layout: str,
    stored: dict[str, Any],
    tensors: Mapping[str, StoredTensor],
    vision: Mapping[str, Any] | None,
    problems: list[str],
) -> Any:
    try:
        if layout == "native":
            return LladaVConfig.from_pretrained(folder)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        return LladaVConfig(**translate_config(stored, shapes, vision))
    except Exception as error:  # of a foreign file; transformers' readers raise anything
        problems += [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
        return None


def _check_tensors(findings: _Findings, tensors: Mapping[str, StoredTensor], config: Any, problems: list[str]) -> None:
    readable = not problems
    expected = _expected_shapes(config, len(tensors), problems) if config is not None else None
    if expected is not None:
        if config.tie_word_embeddings and HEAD not in tensors:
            expected.pop(HEAD, None)
        problems += tensor_problems(tensors, expected, complete=readable)
    size = sum(tensor.nbytes for tensor in tensors.values())
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    mixture = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    fine = f"{len(tensors)} tensors, {size / 1e9:.2f} GB, {mixture}; names and shapes are those of config.json"
    findings.errors("weights", problems, fine)
    stated = str(getattr(config, "dtype", None) or "").removeprefix("torch.")
    if stated and kinds and stated not in kinds:
        findings.warnings("weights", [f"config.json states {stated}, but the tensors are {mixture}"])
    elif len(kinds) > 1:
        findings.warnings("weights", [f"the tensors are of several types ({mixture}); loading makes one of them"])


def _expected_shapes(config: Any, stored: int, problems: list[str]) -> dict[str, tuple[int, ...]] | None:
    """What the model needs; nothing if config.json describes no model, or one that would take for ever to lay out."""
    layers = config.text_config.num_hidden_layers + config.vision_config.num_hidden_layers
    if layers > max(stored, MANY_LAYERS):
        problems.append(f"config.json describes {layers} layers, but there are {stored} tensors")
        return None
    try:
        return model_shapes(config)
    except ValueError as error:
        problems.append(str(error))
        return None


def _check_values(findings: _Findings, tensors: Mapping[str, StoredTensor], progress: Progress) -> dict[str, str]:
    digests: dict[str, str] = {}
    problems, empty = [], []
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
    for name, value in read_tensors(tensors):
        where = f"{tensors[name].key} in {tensors[name].file.name}"
        if bad := count_non_finite(value):
            problems.append(f"{where} holds {bad} NaN or infinite values of {value.numel()}")
        if value.ndim > 1 and not any(bool(piece.any()) for piece in value.flatten().split(CHUNK)):
            empty.append(f"{where} is zero everywhere")
        digests[name] = digest(value)
        done += tensors[name].nbytes
        progress(done, total)
    if tensors:
        findings.errors("values", problems, "all finite")
    findings.warnings("values", empty)
    return digests


def digest(tensor: torch.Tensor) -> str:
    """The sha256 of a tensor's little-endian bytes in row-major order."""
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def _check_tying(findings: _Findings, config: Any, digests: Mapping[str, str]) -> None:
    same = HEAD in digests and digests[HEAD] == digests.get(EMBEDDING)
    if same and not config.tie_word_embeddings:
        text = "head and embedding are equal, but config.json does not tie them: they will drift apart in training"
        findings.warnings("weights", [text])
    elif HEAD in digests and not same and config.tie_word_embeddings:
        text = "config.json ties the head to the embedding, but the folder holds another head, which would be lost"
        findings.append(Finding("error", "weights", text))


def _check_processor(findings: _Findings, folder: Path, config: Any) -> None:
    try:
        processor = LladaVProcessor.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        findings.errors("processor", [f"it cannot be loaded: {_first_line(error)}"], "")
        return
    images = processor.image_processor
    settings = {name: (getattr(images, name), getattr(config, name)) for name in GEOMETRY}
    settings["patch_size"] = (images.patch_size, config.vision_config.patch_size)
    settings["size"] = (dict(images.size), dict.fromkeys(("height", "width"), config.vision_config.image_size))
    different = [
        f"the image processor has {name}={_short(ours)}, config.json {_short(theirs)}"
        for name, (ours, theirs) in settings.items()
        if _plain(ours) != _plain(theirs)
    ]
    findings.errors("processor", different, "loads, and cuts pictures as the model expects")
    _check_ids(findings, processor, config)
    _check_template(findings, processor)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))


def _plain(value: Any) -> Any:
    return [list(entry) for entry in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_ids(findings: _Findings, processor: Any, config: Any) -> None:
    tokenizer, text = processor.tokenizer, config.text_config
    vocabulary = tokenizer.get_vocab()
    known = set(vocabulary.values())
    expected = {
        processor.image_token: config.image_token_id,
        processor.video_token: config.video_token_id,
        processor.mask_token: config.mask_token_id,
    }
    wrong = [
        f"the tokenizer has {token} as {vocabulary.get(token)}, config.json as {number}"
        for token, number in expected.items()
        if vocabulary.get(token) != number
    ]
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    for name, number in [("bos", text.bos_token_id), ("pad", text.pad_token_id), *(("eos", end) for end in ends)]:
        if number is not None and number not in known:
            wrong.append(f"config.json has {name}_token_id={number}, which is no token of the tokenizer")
    producible = {number for number in known if number < config.output_vocab_size}
    if len(producible) != config.output_vocab_size:
        wrong.append(
            f"answers may hold {config.output_vocab_size} tokens (output_vocab_size), of which the tokenizer has "
            f"{len(producible)}"
        )
    if (largest := max(known)) >= text.vocab_size:
        wrong.append(f"the tokenizer has id {largest}, the embedding only {text.vocab_size} rows")
    findings.errors("tokenizer", wrong, f"{len(vocabulary)} tokens, special ids as in config.json")


def _check_template(findings: _Findings, processor: Any) -> None:
    if not processor.chat_template:
        findings.errors("chat template", ["there is none; a chat cannot become a prompt"], "")
        return
    try:
        options = {"add_generation_prompt": True, "tokenize": False}
        ours = processor.apply_chat_template(PROBE, **options)
        official = processor.apply_chat_template(PROBE, chat_template=build_chat_template(), **options)
    except Exception as error:  # a template may raise anything
        text = f"it fails on an ordinary chat: {_first_line(error.__cause__ or error)}"
        findings.errors("chat template", [text], "")
        return
    if ours == official:
        findings.errors("chat template", [], "makes the official prompts")
    else:
        text = f"it makes other prompts than the official one: {_short(ours)!r} for {_short(official)!r}"
        findings.warnings("chat template", [text])


def _check_generation(findings: _Findings, folder: Path, config: Any) -> None:
    if not (folder / "generation_config.json").is_file():
        findings.warnings("generation", ["there is no generation_config.json; the library's defaults apply"])
        return
    try:
        settings = LladaVGenerationConfig.from_pretrained(folder)
    except (ValueError, TypeError, OSError) as error:
        findings.errors("generation", [f"generation_config.json: {line}" for line in str(error).splitlines()], "")
        return
    pairs = {
        "mask_token_id": config.mask_token_id,
        "bos_token_id": config.text_config.bos_token_id,
        "pad_token_id": config.text_config.pad_token_id,
    }
    wrong = [
        f"generation_config.json has {name}={getattr(settings, name)}, config.json {number}"
        for name, number in pairs.items()
        if getattr(settings, name, None) not in (None, number)
    ]
    findings.errors("generation", wrong, "settings are valid, ids as in config.json")


def _check_auto_map(findings: _Findings, folder: Path, stored: Mapping[str, Any]) -> None:
    problems: list[str] = []
    maps = {"config.json": (stored.get("auto_map"), AUTO_MAP)}
    for name in ("processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            maps[name] = (read_json(folder / name, problems).get("auto_map"), PROCESSOR_MAP)
    missing = [name for name, (found, _) in maps.items() if not found]
    for name, (found, expected) in maps.items():
        if found and found != expected:
            problems.append(f"auto_map of {name} decides what code runs; it is {_short(found)}, not {expected}")
    if missing:
        findings.warnings("auto_map", [f"{', '.join(missing)} without one: the folder needs the package to load"])
    if problems or not missing:
        findings.errors("auto_map", problems, "leads to the code files of the folder")


def _check_code(findings: _Findings, folder: Path) -> None:
    expected = {path.name: path for path in code_files()}
    present = {path.name for path in folder.glob("*.py")}
    different = [name for name in sorted(present & set(expected)) if not _same(folder / name, expected[name])]
    lines = ", ".join(f"{name}:{_first_difference(folder / name, expected[name])}" for name in different)
    problem = (
        f"{', '.join(different)}: not the package's, and it runs with trust_remote_code=True (first differences: "
        f"{lines}). If it is from another release, remove the .py files: `lladav push` adds those of this one"
    )
    if missing := sorted(set(expected) - present):
        which = "no code files" if not present & set(expected) else f"without {', '.join(missing)}"
        findings.warnings("code", [f"{which}: the folder needs the package to load"])
    findings.warnings("code", [f"{name} is not of this package" for name in sorted(present - set(expected))])
    if different or not missing:
        fine = f"{len(expected)} files ({len(ENTRY_MODULES)} entries), equal to the package's"
        findings.errors("code", [problem] if different else [], fine)


def _same(file: Path, ours: Path) -> bool:
    """Whether two files have the same bytes; one of another size is not read."""
    return file.is_file() and file.stat().st_size == ours.stat().st_size and file.read_bytes() == ours.read_bytes()


def _first_difference(file: Path, ours: Path) -> int:
    """The line in which a code file leaves ours; 0 for what is no file."""
    if not file.is_file():
        return 0
    expected = [*ours.read_bytes().splitlines(keepends=True), b""]
    with file.open("rb") as theirs:
        return next(n for n, line in enumerate(expected, start=1) if theirs.readline(len(line) + 1) != line)


def _warn_of_code(findings: _Findings, folder: Path) -> None:
    """Code beside official weights: nothing here runs it, but its own Auto classes would."""
    if names := sorted(path.name for path in folder.glob("*.py")):
        text = f"{', '.join(names)}: code beside official weights, which this package neither needs nor runs"
        findings.warnings("code", [text])


def _check_official_tokenizer(findings: _Findings, folder: Path, config: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    try:
        build_processor(config, PreTrainedTokenizerFast.from_pretrained(folder))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        findings.errors("tokenizer", [f"{line}" for line in str(error).splitlines() if line.strip()], "")
        return
    findings.errors("tokenizer", [], f"{config.output_vocab_size} tokens, special ids as LLaDA-V's")
