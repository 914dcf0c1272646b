"""What a denoising loop can be told: lengths, steps, sampling and stops, checked before anything runs."""

import difflib
from typing import Any

from transformers import GenerationConfig

REMASKING = ("low_confidence", "random")

# Names of the official code, with the name used here and how a value translates.
ALIASES: dict[str, tuple[str, Any]] = {
    "steps": ("max_denoising_steps", lambda value: value),
    "gen_length": ("max_new_tokens", lambda value: value),
    "cfg_scale": ("guidance_scale", lambda value: value + 1.0),
    "stopping_criteria": ("stop_strings", lambda value: value),
}

# Options of autoregressive generation that people will try, with what to use instead.
HINTS = {
    "do_sample": "sampling is on when temperature > 0",
    "num_beams": "a denoising loop has no beams",
    "max_length": "give max_new_tokens",
    "min_new_tokens": "the answer ends where the model writes a stop",
}

DEFAULT_MAX_NEW_TOKENS = 128


class LladaVGenerationConfig(GenerationConfig):
    """Settings of [`LladaVGenerationMixin.generate`]; unknown keys are refused.

    Args:
        max_new_tokens (`int`, *optional*): length of the answer canvas in tokens; 128 if nothing says otherwise.
        block_length (`int`, *optional*): tokens denoised together, left to right; the whole canvas by default.
        max_denoising_steps (`int`, *optional*): forward passes over all blocks; one per token by default.
        temperature (`float`, defaults to 0.0): 0 takes the likeliest token; above, Gumbel-max sampling.
        guidance_scale (`float`, defaults to 1.0): weight of the conditional prediction, as in transformers: 1 is
            off; the official `cfg_scale` is this minus 1.
        remasking (`str`, defaults to `"low_confidence"`): which positions stay masked after a step:
            "low_confidence" keeps the least confident, "random" any.
        stop_strings (`list[str]`, *optional*): texts that end the answer; `generate` then needs `tokenizer`.
        eos_token_id (`int` or `list[int]`, *optional*): tokens that end the answer.
        mask_token_id (`int`, *optional*): defaults to the model's.
        pad_token_id (`int`, *optional*): fills short rows of a batch; defaults to the model's.
        bos_token_id (`int`, *optional*): kept for tools that read it; the loop does not use it.
        return_dict_in_generate (`bool`, defaults to `False`): return a [`LladaVGenerationOutput`].
        output_history (`bool`, defaults to `False`): keep the answer window after every step.

    Raises:
        ValueError: for an unknown key or a value out of range, with the rule and the fix.
    """

    def __init__(self, **kwargs: Any) -> None:
        # As with DiffusionGemma's configuration, the parent's fields do not apply and are not set.
        self.max_new_tokens = kwargs.pop("max_new_tokens", None)
        self.block_length = kwargs.pop("block_length", None)
        self.max_denoising_steps = kwargs.pop("max_denoising_steps", None)
        self.temperature = kwargs.pop("temperature", 0.0)
        self.guidance_scale = kwargs.pop("guidance_scale", 1.0)
        self.remasking = kwargs.pop("remasking", "low_confidence")
        self.stop_strings = kwargs.pop("stop_strings", None)
        self.eos_token_id = kwargs.pop("eos_token_id", None)
        self.mask_token_id = kwargs.pop("mask_token_id", None)
        self.pad_token_id = kwargs.pop("pad_token_id", None)
        self.bos_token_id = kwargs.pop("bos_token_id", None)
        self.return_dict_in_generate = kwargs.pop("return_dict_in_generate", False)
        self.output_history = kwargs.pop("output_history", False)

        self._commit_hash = kwargs.pop("_commit_hash", None)
        self._from_model_config = kwargs.pop("_from_model_config", False)
        self.transformers_version = kwargs.pop("transformers_version", None)
        kwargs.pop("use_cache", None)  # every official generation_config.json carries it, and it says nothing here
        if kwargs:
            raise ValueError("; ".join(explain_unknown(name, self.names()) for name in sorted(kwargs)))
        self.validate()

    @classmethod
    def names(cls) -> list[str]:
        """Every option of the loop, official aliases included."""
        own = [
            "max_new_tokens", "block_length", "max_denoising_steps", "temperature", "guidance_scale", "remasking",
            "stop_strings", "eos_token_id", "mask_token_id", "pad_token_id", "bos_token_id",
            "return_dict_in_generate", "output_history",
        ]  # fmt: skip
        return own + list(ALIASES)

    def validate(self, **kwargs: Any) -> None:
        """Check each value alone; how lengths fit together is checked by `schedule`.

        Raises:
            ValueError: with the value, the rule and the fix.
        """
        for name in ("max_new_tokens", "block_length", "max_denoising_steps"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        for name, lowest in (("temperature", 0.0), ("guidance_scale", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= lowest:
                raise ValueError(f"{name}={value!r} must be a number of at least {lowest:g}")
        if self.remasking not in REMASKING:
            raise ValueError(f"remasking={self.remasking!r} is not known; choose one of {', '.join(REMASKING)}")
        if isinstance(self.stop_strings, str):
            self.stop_strings = [self.stop_strings]
        if self.stop_strings is not None and not all(isinstance(text, str) and text for text in self.stop_strings):
            raise ValueError(f"stop_strings={self.stop_strings!r} must be non-empty strings")

    def schedule(self) -> tuple[int, int, int]:
        """Resolve the lengths.

        Returns:
            (canvas length, block length, steps per block), all positive.

        Raises:
            ValueError: if the canvas is not a multiple of the block, the steps are not a multiple of the blocks, or
                there are more steps than tokens.
        """
        canvas = self.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        block = self.block_length or canvas
        if canvas % block:
            raise ValueError(
                f"max_new_tokens={canvas} is not a multiple of block_length={block}; "
                f"pass max_new_tokens={-(-canvas // block) * block}"
            )
        blocks = canvas // block
        steps = self.max_denoising_steps or canvas
        if steps % blocks:
            raise ValueError(
                f"max_denoising_steps={steps} is not a multiple of the {blocks} blocks "
                f"(max_new_tokens / block_length); pass max_denoising_steps={-(-steps // blocks) * blocks}"
            )
        if steps > canvas:
            raise ValueError(
                f"max_denoising_steps={steps} is more than max_new_tokens={canvas}: a step commits at least one "
                f"token; pass max_denoising_steps={canvas} or less"
            )
        return canvas, block, steps // blocks

    @property
    def stop_token_ids(self) -> list[int]:
        """The single tokens that end an answer, as a list."""
        if self.eos_token_id is None:
            return []
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else list(self.eos_token_id)

    @classmethod
    def from_model_config(cls, model_config: Any) -> "LladaVGenerationConfig":
        """Not supported: a model configuration holds no settings of the loop.

        Raises:
            NotImplementedError: always; transformers then builds the defaults.
        """
        raise NotImplementedError("LladaVGenerationConfig is not derived from a model configuration")

    def get_generation_mode(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported: modes distinguish kinds of autoregressive search.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a denoising loop has no generation mode")


def explain_unknown(name: str, known: list[str]) -> str:
    """One sentence on an option that does not exist, with the likeliest intention."""
    if name in HINTS:
        return f"generate() does not take {name!r}: {HINTS[name]}"
    close = difflib.get_close_matches(name, known, n=1)
    return f"generate() does not take {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def resolve_aliases(options: dict[str, Any]) -> dict[str, Any]:
    """Replace official names by the names used here.

    Args:
        options: keyword arguments as given.

    Returns:
        A new dictionary without aliases.

    Raises:
        ValueError: if an alias and its name are both given and differ.
    """
    resolved = {name: value for name, value in options.items() if name not in ALIASES}
    for alias, (name, translate) in ALIASES.items():
        if options.get(alias) is None:
            continue
        value = translate(options[alias])
        if name in resolved and resolved[name] != value:
            raise ValueError(f"{alias}={options[alias]!r} and {name}={resolved[name]!r} disagree; pass one of them")
        resolved[name] = value
    return resolved
