"""How lmms-eval's tasks are answered: as in the paper where it names them, else as the task says, as far as that goes.

What a task says is meant for models that write one token after the other, and is translated here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .eval_asking import NOT_SETTINGS
from .generation_configuration_lladav import DEFAULTS, HINTS, resolve_aliases
from .presets_lladav import PRESETS, find_preset

# lmms-eval's names of the tasks that the paper's settings are for, by preset; variants of a task that ask the model to
# reason at length are not among them, since a canvas of two tokens would cut them off.
_TASKS = {
    "mmmu": ("mmmu_val", "mmmu_test", "mmmu_val_group_img", "mmmu_test_group_img"),
    "mmmu_pro": ("mmmu_pro_standard", "mmmu_pro_vision", "mmmu_pro_composite"),
    "mmstar": ("mmstar", "mmstar_ko"),
    "ai2d": ("ai2d", "ai2d_lite", "ai2d_no_mask"),
    "seedbench": ("seedbench", "seedbench_lite", "seedbench_ko"),
    "mmbench": (
        "mmbench_en_dev", "mmbench_en_dev_lite", "mmbench_en_dev_static", "mmbench_en_test", "mmbench_cn_dev",
        "mmbench_cn_dev_lite", "mmbench_cn_test", "mmbench_cn_cc", "mmbench_ko_dev", "mmbench_ru_dev",
    ),
    "muirbench": ("muirbench",),
    "videomme": ("videomme", "videomme_w_subtitle", "videomme_long", "videomme_long_w_subtitle"),
    "mlvu": ("mlvu_dev", "mlvu_test"),
    "mme": ("mme",),
    "realworldqa": ("realworldqa",),
    "chartqa": ("chartqa", "chartqa_lite"),
    "docvqa": ("docvqa_val", "docvqa_val_lite", "docvqa_test"),
    "infovqa": ("infovqa_val", "infovqa_val_lite", "infovqa_test"),
    "mathvista": (
        "mathvista_testmini_format", "mathvista_testmini_cot", "mathvista_testmini_solution", "mathvista_test",
    ),
    "mathverse": (
        "mathverse_testmini", "mathverse_testmini_text_dominant", "mathverse_testmini_text_lite",
        "mathverse_testmini_text_only", "mathverse_testmini_vision_dominant", "mathverse_testmini_vision_intensive",
        "mathverse_testmini_vision_only",
    ),
}  # fmt: skip
TASK_PRESETS = {task: preset for preset, tasks in _TASKS.items() for task in tasks}

SETTINGS = [name for name in DEFAULTS if name not in NOT_SETTINGS]
LENGTHS = ("max_new_tokens", "block_length", "max_denoising_steps")
# Names of tasks for what has another name here.
_RENAMED = {"max_gen_toks": "max_new_tokens", "until": "stop_strings", "stop_sequences": "stop_strings"}
# Values that change nothing: they say what is so in any case.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {"num_beams": (None, 1), "repetition_penalty": (None, 1)}


@dataclass(frozen=True)
class TaskSettings:
    """How the questions of a task are answered.

    Attributes:
        generation: arguments of `generate`.
        tag: what goes after a question, such as "/no_think".
        source: where the settings come from, in words.
        not_honoured: what the task says and is not done, in words.
    """

    generation: dict[str, Any] = field(default_factory=dict)
    tag: str | None = None
    source: str = ""
    not_honoured: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for a log.

        Returns:
            The settings, the tag and where both come from.
        """
        chosen = [f"{name}={value!r}" for name, value in self.generation.items() if value != DEFAULTS[name]]
        tag = f", {self.tag} after the question" if self.tag else ""
        return f"{self.source}: {', '.join(chosen) or 'the settings of the checkpoint'}{tag}"


def settings_of_task(
    task: str,
    kwargs: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    preset: str | None = None,
    paper: bool = True,
    block_length: int | None = None,
    longest: int | None = None,
) -> TaskSettings:
    """How a task is answered: by the paper's settings or its own, changed by a preset, changed by what a user gave.

    Args:
        task: lmms-eval's name of it.
        kwargs: its `generation_kwargs`.
        given: arguments of `generate` by the user. A length of the canvas that is given takes the lengths of the
            paper's blocks and steps with it, which were made for another.
        preset: settings by name, by the user; a tag of its own replaces the paper's.
        paper: whether the paper's settings apply to the tasks it has settings for.
        block_length: of the checkpoint; a length that the task asks for is rounded up to whole blocks.
        longest: canvas that a task gets at most; a user may ask for more.

    Returns:
        The settings.

    Raises:
        ValueError: if the task asks for what the loop cannot do, or the preset is not known.
    """
    given = resolve_aliases(dict(given or {}))
    chosen = None if preset is None else find_preset(preset)
    known = TASK_PRESETS.get(task) if paper else None
    blocks = (chosen.settings if chosen else {}) | given
    base, missing = translate_kwargs(kwargs, blocks.get("block_length") or block_length, longest)
    tag, source = None, "the task's own settings"
    if known is not None:
        paper_settings, tag, source = PRESETS[known].settings, PRESETS[known].tag, f"the paper's settings for {known}"
        told = {name: value for name, value in base.items() if value is not None}
        replaced = [f"{name}={value!r}" for name, value in told.items() if paper_settings.get(name) != value]
        missing += [f"{setting} of the task, in favour of the paper's" for setting in replaced]
        base = dict(paper_settings)
    if chosen is not None:
        base, tag, source = base | chosen.settings, chosen.tag or tag, f"{source}, preset {preset}"
    if "max_new_tokens" in given and known is not None:
        base |= dict.fromkeys(LENGTHS)
    if "temperature" in given and not given["temperature"]:
        base |= {name: None for name in ("top_p", "top_k") if name in base}
    if given:
        base, source = {**base, **given}, f"{source}, model_args"
    return TaskSettings(base, tag, source, tuple(missing))


def translate_kwargs(
    kwargs: Mapping[str, Any], block_length: int | None, longest: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """A task's `generation_kwargs` as arguments of `generate`.

    Args:
        kwargs: as the task has them; names of our settings are taken as they are.
        block_length: the canvas is a multiple of it; None for one block.
        longest: tokens of the canvas at most. Tasks name lengths that are seldom reached, up to 49,152 tokens, and a
            canvas is there as a whole from the start.

    Returns:
        The arguments, and what has none, in words.

    Raises:
        ValueError: for several beams.
    """
    named: dict[str, Any] = {}
    for name, value in kwargs.items():
        target = _RENAMED.get(name, name)
        named[target] = [*_texts(named.get(target)), *_texts(value)] if target == "stop_strings" else value
    if not named.get("stop_strings", True):
        del named["stop_strings"]
    missing = []
    sampling = _sampling({name: named.pop(name, None) for name in ("do_sample", "temperature", "top_p", "top_k")})
    arguments: dict[str, Any] = {name: named.pop(name) for name in SETTINGS if name in named}
    for name, value in named.items():
        if value in _WITHOUT_EFFECT.get(name, ()):
            continue
        if name == "num_beams":
            raise ValueError(f"num_beams={value!r}: {HINTS['num_beams']}; pass --gen_kwargs num_beams=1")
        missing.append(f"{name}={value!r}" + (f": {HINTS[name]}" if name in HINTS else ""))
    if arguments.get("max_new_tokens"):
        asked = int(arguments["max_new_tokens"])
        allowed = min(asked, longest or asked)
        block = arguments.get("block_length") or block_length or allowed
        arguments["max_new_tokens"] = -(-allowed // block) * block
        if allowed < asked:
            missing.append(f"max_new_tokens={asked}: a canvas has at most {allowed}, half of the model's positions")
        arguments.setdefault("max_denoising_steps", None)  # a checkpoint's own belong to its own canvas
    return sampling | arguments, missing


def _texts(value: Any) -> list[str]:
    """Texts that end an answer; lmms-eval has them as one text, a list, or none."""
    given = [value] if isinstance(value, str) else list(value or ())
    return [str(text) for text in given if text]


def _sampling(told: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks that decode greedily say so by `do_sample: false`, a temperature of 0 or both, and may have a top_p."""
    temperature, sample = told["temperature"], told["do_sample"]
    if temperature is None and sample is None:
        return {}
    if temperature is None and sample:
        temperature = 1.0
    if sample is False or not temperature:
        return {"temperature": 0.0}
    top_p = told["top_p"] if told["top_p"] and 0 < told["top_p"] < 1 else None
    return {"temperature": float(temperature), "top_p": top_p, "top_k": told["top_k"] or None}
