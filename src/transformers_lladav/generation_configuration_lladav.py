"""What a denoising loop can be told: lengths, steps, sampling and stops, checked before anything runs."""

import difflib
from typing import Any

from transformers import CompileConfig, GenerationConfig

from .commit_rules_lladav import RULES, ConfidenceFactor, ConfidenceThreshold, EntropyBound, FixedSchedule, load_rule
from .sampling_lladav import REMASKING, SamplingSettings


def _guidance(scale: Any) -> float:
    """The official scale counts from 0."""
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ValueError(f"cfg_scale={scale!r} must be a number")
    return scale + 1.0


# Names of the official code, with the name used here and how a value translates.
ALIASES: dict[str, tuple[str, Any]] = {
    "steps": ("max_denoising_steps", lambda value: value),
    "gen_length": ("max_new_tokens", lambda value: value),
    "cfg_scale": ("guidance_scale", _guidance),
    "stopping_criteria": ("stop_strings", lambda value: value),
}

# Settings that name a commit rule by its only parameter.
RULE_SETTINGS: dict[str, Any] = {
    "threshold": ConfidenceThreshold,
    "factor": ConfidenceFactor,
    "entropy_bound": EntropyBound,
}

# Options of autoregressive generation that people will try, with what to use instead.
HINTS = {
    "do_sample": "sampling is on when temperature > 0",
    "num_beams": "a denoising loop has no beams",
    "max_length": "give max_new_tokens",
    "min_new_tokens": "the answer ends where the model writes a stop",
    "prefix_allowed_tokens_fn": "a position has no prefix here; give allowed_tokens_fn",
    "repetition_penalty": "give no_repeat_ngram_size, or a RepetitionPenaltyLogitsProcessor as logits_processor",
}

DEFAULT_MAX_NEW_TOKENS = 128

# What is remembered between the passes of a loop.
CACHES = ("prompt", "dual", "auto")
CACHE_IMPLEMENTATIONS = ("dynamic", "static")

DEFAULTS: dict[str, Any] = {
    "max_new_tokens": None,
    "block_length": None,
    "max_denoising_steps": None,
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    "guidance_scale": 1.0,
    "remasking": "low_confidence",
    "threshold": None,
    "factor": None,
    "entropy_bound": None,
    "sampler_config": None,
    "stability_threshold": None,
    "confidence_threshold": None,
    "no_repeat_ngram_size": None,
    "prompt_refresh_interval": 1,
    "live_prompt_length": 64,
    "use_cache": "prompt",
    "cache_implementation": None,
    "compile_config": None,
    "disable_compile": None,
    "stop_strings": None,
    "eos_token_id": None,
    "mask_token_id": None,
    "pad_token_id": None,
    "bos_token_id": None,
    "return_dict_in_generate": False,
    "output_history": False,
    "output_scores": False,
}


class LladaVGenerationConfig(GenerationConfig):
    """Settings of [`LladaVGenerationMixin.generate`]; unknown keys are refused.

    Args:
        max_new_tokens (`int`, *optional*): length of the answer canvas in tokens; 128 if nothing says otherwise.
        block_length (`int`, *optional*): tokens denoised together, left to right; the whole canvas by default.
        max_denoising_steps (`int`, *optional*): forward passes over all blocks; one per token by default.
        temperature (`float`, defaults to 0.0): 0 takes the likeliest token; above, Gumbel-max sampling.
        guidance_scale (`float`, defaults to 1.0): weight of the conditional prediction, as in transformers: 1 is
            off; the official `cfg_scale` is this minus 1.
        top_k (`int`, *optional*): with a temperature, sample among the likeliest so many tokens.
        top_p (`float`, *optional*): with a temperature, sample among the fewest tokens that reach this probability.
        remasking (`str`, defaults to `"low_confidence"`): which positions stay masked after a step: those whose
            candidate has the lowest probability ("low_confidence"), the smallest gap to the second best ("margin"),
            the highest entropy ("entropy"), or any ("random").
        threshold (`float`, *optional*): write every position whose confidence reaches it, in place of a fixed number.
        factor (`float`, *optional*): write the n surest positions, n the largest with (n + 1)(1 - p_n) < factor.
        entropy_bound (`float`, *optional*): write the positions of lowest entropy while their sum without the
            largest stays within this bound, in nats.
        sampler_config (*optional*): a commit rule as an object, such as [`ConfidenceThreshold`], instead of one of
            the three settings above; without any, the fixed schedule of the official loop.
        stability_threshold (`int`, *optional*): end a block early when the likeliest tokens have not changed for so
            many steps; with `confidence_threshold`, when both hold.
        confidence_threshold (`float`, *optional*): end a block early when the mean entropy of its masked positions
            is below this, in nats (a stopping bound, as for DiffusionGemma, not a probability).
        no_repeat_ngram_size (`int`, *optional*): never write a sequence of so many tokens twice in an answer; may
            take more steps than `max_denoising_steps`.
        prompt_refresh_interval (`int`, *optional*, defaults to 1): passes over the whole sequence begin each block and
            are repeated after so many steps; those between use what is remembered, an approximation that is fast. 1
            remembers nothing and is exact; None stands for a single whole pass.
        live_prompt_length (`int`, defaults to 64): so many tokens of text at the end of the prompt, behind its last
            picture, are run with the answer in every step. 0 remembers the whole prompt, as Fast-dLLM does; the dual
            cache always does.
        use_cache (`str`, defaults to `"prompt"`): what is remembered: the prompt ("prompt"), everything but the live
            block ("dual", for large batches), or what suits batch and blocks ("auto"). True, which tools and official
            files carry, stands for the default.
        cache_implementation (`str`, *optional*): "static" for steps whose tensors keep their shapes, which are
            compiled on GPUs; nothing random, no constraints and no time limit then. "dynamic" otherwise.
        compile_config (`CompileConfig`, *optional*): with "static", how steps are compiled; given, on any device.
        disable_compile (`bool`, *optional*): with "static", compile nothing.
        stop_strings (`list[str]`, *optional*): texts that end the answer; `generate` then needs `tokenizer`.
        eos_token_id (`int` or `list[int]`, *optional*): tokens that end the answer.
        mask_token_id (`int`, *optional*): defaults to the model's.
        pad_token_id (`int`, *optional*): fills short rows of a batch; defaults to the model's.
        bos_token_id (`int`, *optional*): kept for tools that read it; the loop does not use it.
        return_dict_in_generate (`bool`, defaults to `False`): return a [`LladaVGenerationOutput`].
        output_history (`bool`, defaults to `False`): keep the answer window after every step.
        output_scores (`bool`, defaults to `False`): return the confidence of each token when it was written.

    Raises:
        ValueError: for an unknown key or a value out of range, with the rule and the fix.
    """

    stop_strings: list[str] | None
    sampler_config: Any
    use_cache: Any
    compile_config: Any

    def __init__(self, **kwargs: Any) -> None:
        # As with DiffusionGemma's configuration, the parent's fields do not apply and are not set.
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        self._commit_hash = kwargs.pop("_commit_hash", None)
        self._from_model_config = kwargs.pop("_from_model_config", False)
        self.transformers_version = kwargs.pop("transformers_version", None)
        if kwargs:
            raise ValueError("; ".join(explain_unknown(name, self.names()) for name in sorted(kwargs)))
        self.validate()

    @classmethod
    def names(cls) -> list[str]:
        """Every option of the loop, official aliases included."""
        return [*DEFAULTS, *ALIASES]

    def validate(self, **kwargs: Any) -> None:
        """Check each value alone; how lengths fit together is checked by `schedule`.

        Raises:
            ValueError: with the value, the rule and the fix.
        """
        self._check_ids()
        self._check_numbers()
        if self.remasking not in REMASKING:
            raise ValueError(f"remasking={self.remasking!r} is not known; choose one of {', '.join(REMASKING)}")
        self._check_cache()
        self._check_static()
        if self.stop_strings is not None:
            self.stop_strings = _as_texts("stop_strings", self.stop_strings)
        if isinstance(self.sampler_config, dict):
            self.sampler_config = load_rule(self.sampler_config)
        self._check_together()

    def _check_ids(self) -> None:
        """Refuse what is no token."""
        for name in ("eos_token_id", "mask_token_id", "pad_token_id", "bos_token_id"):
            ids = getattr(self, name)
            several = name == "eos_token_id" and isinstance(ids, list | tuple)
            for token in ids if several else [ids]:
                _check_whole(name, token, 0)

    def _check_numbers(self) -> None:
        """Refuse numbers out of range."""
        for name in ("top_k", "no_repeat_ngram_size"):
            if getattr(self, name) == 0 and getattr(self, name) is not False:
                setattr(self, name, None)  # transformers' other way to say that it is off
        whole = ("max_new_tokens", "block_length", "max_denoising_steps", "top_k", "no_repeat_ngram_size")
        for name in (*whole, "prompt_refresh_interval"):
            _check_whole(name, getattr(self, name), 1)
        for name in ("stability_threshold", "live_prompt_length"):
            _check_whole(name, getattr(self, name), 0)
        for name in ("temperature", "guidance_scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{name}={value!r} must be a number of at least 0")
            if value == float("inf"):
                raise ValueError(f"{name}={value!r} must be finite")
        for name, highest in (("top_p", 1.0), ("confidence_threshold", float("inf"))):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= highest
            ):
                upper = "" if highest == float("inf") else f" and at most {highest:g}"
                raise ValueError(f"{name}={value!r} must be a number above 0{upper}")

    def _check_cache(self) -> None:
        """Refuse what cannot be remembered."""
        if self.use_cache is False and self.prompt_refresh_interval != 1:
            raise ValueError(
                f"use_cache=False and prompt_refresh_interval={self.prompt_refresh_interval} disagree; pass "
                "prompt_refresh_interval=1 to remember nothing"
            )
        if self.use_cache is None or isinstance(self.use_cache, bool):
            self.use_cache = DEFAULTS["use_cache"]
        if self.use_cache not in CACHES:
            raise ValueError(f"use_cache={self.use_cache!r} is not known; choose one of {', '.join(CACHES)}")
        if self.use_cache == "dual" and self.prompt_refresh_interval == 1:
            raise ValueError(
                'use_cache="dual" remembers nothing with prompt_refresh_interval=1; pass prompt_refresh_interval=8, '
                "or None for a single whole pass"
            )

    def _check_static(self) -> None:
        """Refuse what cannot be known before a step, and options of compilation where nothing is compiled."""
        known = CACHE_IMPLEMENTATIONS
        if self.cache_implementation not in (None, *known):
            raise ValueError(
                f"cache_implementation={self.cache_implementation!r} is not known; choose one of {', '.join(known)}"
            )
        static = self.cache_implementation == "static"
        if isinstance(self.compile_config, dict):
            self.compile_config = CompileConfig(**self.compile_config)
        if self.compile_config is not None and not (static and isinstance(self.compile_config, CompileConfig)):
            raise ValueError(
                f"compile_config={self.compile_config!r} must be a CompileConfig of transformers, and needs "
                'cache_implementation="static"'
            )
        settings = {"temperature": 0, "no_repeat_ngram_size": None}
        given = [f"{name}={getattr(self, name)}" for name, off in settings.items() if getattr(self, name) != off]
        given += [f"remasking={self.remasking!r}"] if self.remasking == "random" else []
        if static and given:
            raise ValueError(
                f'{given[0]} does not go with cache_implementation="static", whose steps hold nothing random and no '
                "constraints; leave one of them out"
            )

    def _check_together(self) -> None:
        """Refuse settings that would cancel or ignore each other."""
        for name in ("top_k", "top_p"):
            if getattr(self, name) is not None and self.temperature == 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} needs temperature > 0: at 0 the likeliest token is taken; "
                    f"pass temperature=1.0, or leave {name} out"
                )
        given = [name for name in (*RULE_SETTINGS, "sampler_config") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different rules for what a step writes; give one of them")
        rule = self.sampler_config
        if isinstance(rule, type) or (rule is not None and not callable(getattr(rule, "select", None))):
            raise ValueError(f"sampler_config={rule!r} is no commit rule; give one such as ConfidenceThreshold(0.9)")
        measures = getattr(self.commit_rule(), "remasking", REMASKING)
        if self.remasking not in measures:
            raise ValueError(
                f"{given[0]} does not go with remasking={self.remasking!r}; it needs {' or '.join(measures)}"
            )

    def change(self, settings: dict[str, Any]) -> None:
        """Set several settings; a commit rule among them replaces whatever rule was set.

        Args:
            settings: names and values.
        """
        rules = (*RULE_SETTINGS, "sampler_config")
        if any(settings.get(name) is not None for name in rules):
            settings = {**dict.fromkeys(rules), **settings}
        for name, value in settings.items():
            setattr(self, name, value)

    def commit_rule(self) -> Any:
        """The rule that says what a step writes, as an object.

        Returns:
            `sampler_config`, the rule of `threshold`, `factor` or `entropy_bound`, or the fixed schedule.
        """
        if self.sampler_config is not None:
            return self.sampler_config
        for name, rule in RULE_SETTINGS.items():
            if getattr(self, name) is not None:
                return rule(getattr(self, name))
        return FixedSchedule()

    def sampling(self) -> SamplingSettings:
        """How candidates are chosen and rated."""
        needs_entropy = getattr(self.commit_rule(), "needs_entropy", False) or self.confidence_threshold is not None
        return SamplingSettings(self.temperature, self.top_k, self.top_p, self.remasking, needs_entropy)

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

    def hole_schedule(self, holes: list[int]) -> tuple[int, list[int]]:
        """Resolve the lengths when infilling, for each sample as if it were alone.

        Args:
            holes: masks to fill, per sample.

        Returns:
            The block length, and the steps per block of each sample. Its last block may be shorter than the others;
            steps that have nothing left to fill are not taken.

        Raises:
            ValueError: if a sample has more blocks than steps.
        """
        block = min(self.block_length or max(holes), max(holes))
        steps = []
        for sample, count in enumerate(holes):
            blocks = -(-count // block)
            limit = self.max_denoising_steps or block * blocks
            if limit < blocks:
                raise ValueError(
                    f"max_denoising_steps={limit} is less than the {blocks} blocks of block_length={block} that the "
                    f"{count} holes of sample {sample} need; pass max_denoising_steps={blocks} or more"
                )
            steps.append(min(limit // blocks, block))
        return block, steps

    @property
    def stop_token_ids(self) -> list[int]:
        """The single tokens that end an answer, as a list."""
        if self.eos_token_id is None:
            return []
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else list(self.eos_token_id)

    def to_dict(self) -> dict[str, Any]:
        """The settings, with a commit rule as its own settings and class name."""
        output: dict[str, Any] = super().to_dict()
        rule = self.sampler_config
        if rule is not None:
            own = rule.to_dict() if hasattr(rule, "to_dict") else {}
            output["sampler_config"] = {"_cls_name": type(rule).__name__, **own}
        return output

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write `generation_config.json`, as transformers does.

        Raises:
            ValueError: if the commit rule is of a class of your own, which could not be loaded again.
        """
        if self.sampler_config is not None and type(self.sampler_config).__name__ not in RULES:
            raise ValueError(
                f"sampler_config={self.sampler_config!r} cannot be loaded again: only {', '.join(RULES)} can; set it "
                "to None before saving and pass it to generate"
            )
        super().save_pretrained(*args, **kwargs)

    @staticmethod
    def _get_default_generation_params() -> dict[str, Any]:
        """What transformers fills in where nothing was set; its defaults are those of autoregressive sampling."""
        return {}

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
        ValueError: if an alias and its name are both given and differ, or a scale is no number.
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


def _check_whole(name: str, value: Any, lowest: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < lowest):
        raise ValueError(f"{name}={value!r:.80} must be a whole number of at least {lowest}")


def _as_texts(name: str, value: Any) -> list[str]:
    """A new list of texts; one text is a list of one."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{name}={texts!r} must be non-empty strings")
    return list(texts)
