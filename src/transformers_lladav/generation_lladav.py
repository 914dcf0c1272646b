"""`generate()` of LLaDA-V: checks arguments, encodes the prompt once, runs the denoising loop, returns answers."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CompileConfig, GenerationConfig
from transformers.generation import GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .canvas_lladav import Canvas, append_canvas, check_tokens, is_whole, open_holes, prompt_tail
from .commit_rules_lladav import FixedSchedule
from .constraints_lladav import (
    AllowedTokens,
    AllowedTokensConstraint,
    Constraint,
    LogitsProcessors,
    NoRepeatedNgrams,
)
from .denoising_lladav import DenoisingLoop, DenoisingStep, LoopExtras
from .forward_passes_lladav import ForwardPasses, LoopInputs, chosen_cache
from .generation_configuration_lladav import LladaVGenerationConfig, explain_unknown, resolve_aliases
from .presets_lladav import find_preset
from .static_loop_lladav import COMPILED_DEVICES, StaticLoop, StaticPasses
from .stopping_lladav import check_criteria, split_time

logger = logging.get_logger(__name__)

PICTURE_INPUTS = (
    "pixel_values", "image_sizes", "image_tile_counts", "pixel_values_videos", "video_frame_counts",
)  # fmt: skip
# What processors and pipelines pass along and the loop has no use for.
TOLERATED_INPUTS = ("batch_num_images", "token_type_ids", "mm_token_type_ids", "synced_gpus")


@dataclass
class LladaVGenerationOutput(ModelOutput):
    """Output of [`LladaVGenerationMixin.generate`] with `return_dict_in_generate=True`.

    Attributes:
        sequences: (batch, length), prompt, answer before its stop, suffix; short rows are padded on the right. When
            infilling, the prompt with its holes filled.
        answers: list of (tokens,) per sample, the answer before its stop without prompt and suffix; when infilling,
            the tokens of the holes, in order.
        denoising_steps: (batch,), steps each sample took part in.
        tokens_per_forward: (batch,), answer tokens (the stop included) over forward passes of that sample.
        whole_forwards: (batch,), how many of these passes ran the prompt as well: all of them, unless
            `prompt_refresh_interval` is set.
        stopped: (batch,) boolean, whether the model ended the answer itself.
        finish_reasons: list of str per sample: "stop" (a stop token), "stop_string", "length" (the canvas is full),
            "stopping_criteria", or "filled" (infilling).
        history: list over steps of (batch, canvas) token ids, with `output_history=True`.
        scores: (batch, canvas), the confidence of each token when it was written, NaN where nothing was; with
            `output_scores=True`.
    """

    sequences: torch.Tensor
    answers: list[torch.Tensor] | None = None
    denoising_steps: torch.Tensor | None = None
    tokens_per_forward: torch.Tensor | None = None
    whole_forwards: torch.Tensor | None = None
    stopped: torch.Tensor | None = None
    finish_reasons: list[str] | None = None
    history: list[torch.Tensor] | None = None
    scores: torch.Tensor | None = None


class LladaVGenerationMixin(GenerationMixin):
    """Gives a model `generate()` by denoising."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        attention_mask: torch.Tensor | None = None,
        tokenizer: Any = None,
        preset: str | None = None,
        infill: bool = False,
        suffix_ids: torch.Tensor | None = None,
        generation_suffix: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        logits_processor: Sequence[Any] | None = None,
        stopping_criteria: Any = None,
        allowed_tokens_fn: AllowedTokens | None = None,
        callback_on_step_end: Callable[[DenoisingStep], None] | None = None,
        official_draws: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor | LladaVGenerationOutput:
        """Answer a batch of prompts by block-wise denoising.

        Args:
            input_ids: (batch, prompt) from the processor, padded on either side.
            generation_config: base settings; the model's own by default.
            streamer: a `TextDiffusionStreamer`, a `LladaVStreamer`, or any with `put` and `end`; when infilling it
                gets the tokens of the holes.
            attention_mask: (batch, prompt), 0 at padding; all ones by default.
            tokenizer: needed for `stop_strings` and `generation_suffix`.
            preset: settings by name, see `PRESETS`; they win over `generation_config`.
            infill: fill the mask tokens in the last message of `input_ids` (from `processor.infilling_inputs`) and
                nothing else, instead of writing an answer behind the prompt.
            suffix_ids: (suffix,) or (batch, suffix) tokens that stand after the answer from the start.
            generation_suffix: the same as text.
            generator: one per sample, or one that seeds them in order; used with `temperature > 0` and
                `remasking="random"`.
            logits_processor: logits processors of transformers, called at every masked position; those that ask
                what stands before the next token are refused.
            stopping_criteria: stop texts (the official meaning), or criteria of transformers, which are asked after
                each block; a `MaxTimeCriteria` after each step, and the live block is then completed at once.
            allowed_tokens_fn: called with the row, the position in the answer and the answer so far, (canvas,);
                returns the token ids the position may take, or None for any.
            callback_on_step_end: called with a `DenoisingStep` after every step.
            official_draws: reproduce the random numbers of the official code; batch 1, `generator` as one object.
            **kwargs: settings of [`LladaVGenerationConfig`] (official aliases `steps`, `gen_length`, `cfg_scale`
                included), which win over `preset`, and the processor's picture and video inputs.

        Returns:
            (batch, length) prompt, answer before its stop, suffix; or a [`LladaVGenerationOutput`].

        Raises:
            TypeError: for an unknown argument.
            ValueError: for values that break a rule; the message gives value, rule and fix.
        """
        if isinstance(stopping_criteria, str) or _all_text(stopping_criteria):
            kwargs["stopping_criteria"], stopping_criteria = stopping_criteria, None
        config, pictures = self._prepare_settings(generation_config, preset, kwargs)
        input_ids = _checked_prompt(input_ids, official_draws, self.config.text_config.vocab_size)
        suffix = self._suffix(input_ids, suffix_ids, generation_suffix, tokenizer)
        mask = _prompt_mask(input_ids, attention_mask)
        if infill:
            _check_infill(config, kwargs, suffix, stopping_criteria)
            canvas = open_holes(input_ids, mask, config.mask_token_id, self._message_ends())
        else:
            canvas = append_canvas(input_ids, mask, config.schedule()[0], config.mask_token_id, suffix)
        self._check_positions(canvas, input_ids, suffix)
        prompts = _without_padding(input_ids, mask)
        constraints = _constraints(config, logits_processor, allowed_tokens_fn, prompts)
        timed, criteria = split_time(check_criteria(stopping_criteria))
        stops = _stop_sequences(config, tokenizer, input_ids.device)
        suppressed = self._suppressed(config, infill, bool(constraints or timed)).to(input_ids.device)
        callbacks = (generator, official_draws, callback_on_step_end)
        _check_static(config, constraints, timed)
        extras = LoopExtras(stops, suppressed, constraints, timed, criteria, prompts, *callbacks)
        loop = self._build_loop(canvas, config, extras, pictures, infill)
        history = loop.run(input_ids, streamer)
        return self._output(input_ids, suffix, loop, infill, history)

    def _prepare_settings(
        self, base: GenerationConfig | None, preset: str | None, kwargs: dict[str, Any]
    ) -> tuple[LladaVGenerationConfig, dict[str, Any]]:
        """Split keyword arguments into complete settings and picture inputs."""
        pictures = {name: kwargs.pop(name) for name in PICTURE_INPUTS if name in kwargs}
        kwargs = {name: value for name, value in kwargs.items() if name not in TOLERATED_INPUTS}
        known = self.generation_config_class.names()
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            own = inspect.signature(self.generate).parameters
            raise TypeError("; ".join(explain_unknown(name, [*known, *own]) for name in unknown))
        config = copy.deepcopy(self._own_kind(base if base is not None else self.generation_config))
        if preset is not None:
            config.change(find_preset(preset).settings)
        config.change(resolve_aliases(kwargs))
        config.validate()
        if config.eos_token_id is None and "eos_token_id" not in kwargs:
            config.eos_token_id = self.config.text_config.eos_token_id
        if config.mask_token_id is None:
            config.mask_token_id = self.config.mask_token_id
        if config.pad_token_id is None:
            config.pad_token_id = self.config.text_config.pad_token_id
        return config, pictures

    def _own_kind(self, config: GenerationConfig) -> LladaVGenerationConfig:
        """Translate a plain `GenerationConfig`, refusing what the loop cannot honour."""
        if hasattr(config, "remasking"):
            return config
        ignored = {"transformers_version", "_from_model_config", "_commit_hash"}
        options = {name: value for name, value in config.to_diff_dict().items() if name not in ignored}
        return self.generation_config_class(**{name: value for name, value in options.items() if value is not None})

    def _suffix(
        self,
        input_ids: torch.Tensor,
        suffix_ids: torch.Tensor | None,
        generation_suffix: str | None,
        tokenizer: Any,
    ) -> torch.Tensor:
        batch = len(input_ids)
        if suffix_ids is not None and generation_suffix is not None:
            raise ValueError("suffix_ids and generation_suffix were both given; pass one of them")
        if generation_suffix is not None:
            if tokenizer is None:
                raise ValueError("generation_suffix is text: pass tokenizer=processor.tokenizer as well")
            suffix_ids = tokenizer(generation_suffix, add_special_tokens=False).input_ids
        if suffix_ids is None:
            return input_ids.new_zeros(batch, 0)
        suffix = torch.as_tensor(suffix_ids, device=input_ids.device)
        if suffix.ndim not in (1, 2) or (suffix.numel() and not is_whole(suffix)):
            raise ValueError(
                f"suffix_ids has shape {tuple(suffix.shape)} and dtype {suffix.dtype}; give (suffix,) or "
                "(batch, suffix) whole numbers"
            )
        suffix = suffix.long().expand(batch, -1) if suffix.ndim == 1 else suffix.long()
        if suffix.shape[0] != batch:
            raise ValueError(
                f"suffix_ids has {suffix.shape[0]} rows for a batch of {batch}; pass one row, or one each"
            )
        check_tokens("suffix_ids", suffix, self.config.text_config.vocab_size)
        return suffix

    def _message_ends(self) -> list[int]:
        """Tokens that end a message, whatever a call stops at."""
        ends = self.config.text_config.eos_token_id
        return list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]

    def _suppressed(self, config: LladaVGenerationConfig, infill: bool, hurried: bool) -> torch.Tensor:
        """Ids that are never written, (tokens,).

        The official loop may write the mask token itself and leave the position to a later step; whatever goes on
        until everything is written, or completes a block at once (`hurried`), cannot. A hole has a given length, so
        nothing may end a message inside it.
        """
        suppressed = set(self.config.suppressed_token_ids)
        hurried |= config.stability_threshold is not None or config.confidence_threshold is not None
        if infill or hurried or type(config.commit_rule()).__name__ != FixedSchedule.__name__:
            suppressed.add(config.mask_token_id)
        if infill:
            suppressed.update(config.stop_token_ids, self._message_ends())
        return torch.tensor(sorted(suppressed & set(range(self.config.output_vocab_size))), dtype=torch.long)

    def _build_loop(
        self,
        canvas: Canvas,
        config: LladaVGenerationConfig,
        extras: LoopExtras,
        pictures: dict[str, torch.Tensor],
        infill: bool,
    ) -> DenoisingLoop:
        """Encode the prompt with its pictures, once."""
        if infill:
            block_length, steps = config.hole_schedule(canvas.present.sum(dim=1).tolist())
            config.eos_token_id = None
        else:
            _, block_length, per_block = config.schedule()
            steps = [per_block] * len(canvas.slots)
        embeds, _, _ = self.model.embed_inputs(canvas.input_ids, **pictures)
        placeholders = [self.config.image_token_id, self.config.video_token_id]
        tail = prompt_tail(canvas, placeholders, config.live_prompt_length)
        inputs = LoopInputs(embeds, canvas.attention_mask, canvas.slots, canvas.present, canvas.blind, tail)
        blocks = -(-canvas.slots.shape[1] // block_length)
        dual = chosen_cache(config.use_cache, len(canvas.slots), blocks) == "dual"
        scale, interval = config.guidance_scale, config.prompt_refresh_interval
        if config.cache_implementation == "static":
            static = StaticPasses(self, inputs, config.mask_token_id, scale, interval, dual)
            return StaticLoop(static, inputs, config, block_length, steps, extras, self._compilation(config))
        passes = ForwardPasses(self, inputs, config.mask_token_id, scale, interval, dual)
        return DenoisingLoop(passes, inputs, config, block_length, steps, extras)

    def _compilation(self, config: LladaVGenerationConfig) -> CompileConfig | None:
        """How static steps are compiled: as asked, otherwise where it pays."""
        if config.disable_compile:
            return None
        return config.compile_config or (CompileConfig() if self.device.type in COMPILED_DEVICES else None)

    def _check_positions(self, canvas: Canvas, input_ids: torch.Tensor, suffix: torch.Tensor) -> None:
        mask, limit = canvas.attention_mask, self.config.text_config.max_position_embeddings
        total = canvas.input_ids.shape[1] if mask is None else int(mask.sum(dim=1).max())
        added = canvas.input_ids.shape[1] - input_ids.shape[1]
        if total > limit:
            raise ValueError(
                f"the prompt has {total - added} tokens and the answer {added}"
                + (f" (of which the suffix {suffix.shape[1]})" if suffix.shape[1] else "")
                + f", but the model has {limit} positions; shorten the prompt, use fewer pictures, or lower "
                "max_new_tokens"
            )

    def _output(
        self,
        input_ids: torch.Tensor,
        suffix: torch.Tensor,
        loop: DenoisingLoop,
        infill: bool,
        history: list[torch.Tensor],
    ) -> torch.Tensor | LladaVGenerationOutput:
        config, ends = loop.config, loop.ends
        if infill:
            answers = [row[there] for row, there in zip(loop.answer, loop.inputs.present, strict=True)]
            sequences = input_ids.clone()
            for row, answer, slots in zip(sequences, answers, loop.inputs.slots, strict=True):
                row[slots[: len(answer)]] = answer
            written = loop.inputs.present.sum(dim=1)
        else:
            answers = [row[:end] for row, end in zip(loop.answer, ends.tolist(), strict=True)]
            rows = [torch.cat(parts) for parts in zip(input_ids, answers, suffix, strict=True)]
            padding = config.pad_token_id if config.pad_token_id is not None else 0
            sequences = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
            written = ends + (loop.stop_at <= loop.cut_at) * (loop.stop_at < loop.canvas)
        if not config.return_dict_in_generate:
            return sequences
        forwards = loop.steps_taken * (1 if config.guidance_scale == 1 else 2)
        reasons = ["filled"] * len(answers) if infill else loop.finish_reasons()
        return LladaVGenerationOutput(
            sequences=sequences,
            answers=answers,
            denoising_steps=loop.steps_taken,
            tokens_per_forward=written / forwards.clamp(min=1),
            whole_forwards=loop.passes.whole,
            stopped=torch.tensor([reason in ("stop", "stop_string") for reason in reasons], device=input_ids.device),
            finish_reasons=reasons,
            history=history if config.output_history else None,
            scores=loop.scores if config.output_scores else None,
        )

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | None,
        trust_remote_code: bool | None = None,
        vision_config: Any = None,
        **loading_options: Any,
    ) -> None:
        """Load `generation_config.json` as a [`LladaVGenerationConfig`]; called by `from_pretrained`.

        Files that transformers derived from a model configuration (the official release has one) say nothing about
        denoising and are passed over.
        """
        if generation_config is not None:
            self.generation_config = self._own_kind(generation_config)
            return
        if pretrained_model_name_or_path is None:
            return
        try:
            loaded = self.generation_config_class.from_pretrained(pretrained_model_name_or_path, **loading_options)
        except OSError:
            logger.info("no generation_config.json in %s; using the defaults", pretrained_model_name_or_path)
            return
        if not loaded._from_model_config:
            self.generation_config = loaded


def _all_text(criteria: Any) -> bool:
    return isinstance(criteria, list | tuple) and len(criteria) > 0 and all(isinstance(item, str) for item in criteria)


def _checked_prompt(input_ids: torch.Tensor | None, official_draws: bool, vocabulary: int) -> torch.Tensor:
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2 or not len(input_ids) or not is_whole(input_ids):
        given = type(input_ids).__name__
        if isinstance(input_ids, torch.Tensor):
            given = f"a {input_ids.dtype} tensor of shape {tuple(input_ids.shape)}"
        raise ValueError(
            f"input_ids must be given as (batch, prompt) whole numbers, not {given}; use "
            "the processor's output, with return_tensors='pt' and padding"
        )
    if official_draws and len(input_ids) != 1:
        raise ValueError(f"official_draws needs batch size 1, not {len(input_ids)}: the official code has no more")
    check_tokens("input_ids", input_ids, vocabulary)
    return input_ids


def _check_infill(config: LladaVGenerationConfig, given: dict[str, Any], suffix: torch.Tensor, criteria: Any) -> None:
    for name in ("max_new_tokens", "gen_length"):
        if name in given:
            raise ValueError(f"{name}={given[name]} has no meaning with infill=True: the holes give the length")
    if suffix.shape[1]:
        raise ValueError("a suffix has no meaning with infill=True; write it behind the hole in the message")
    if config.stop_strings:
        raise ValueError(f"stop_strings={config.stop_strings} have no meaning with infill=True: every hole is filled")
    if criteria:
        raise ValueError("stopping_criteria have no meaning with infill=True: every hole is filled")
    if config.no_repeat_ngram_size is not None:
        raise ValueError(
            f"no_repeat_ngram_size={config.no_repeat_ngram_size} does not go with infill=True: holes are not one text"
        )


def _check_static(config: LladaVGenerationConfig, constraints: list[Constraint], timed: list[Any]) -> None:
    if config.cache_implementation == "static" and (constraints or timed):
        refused = (
            "logits_processor or allowed_tokens_fn" if constraints else "a MaxTimeCriteria, asked after every step,"
        )
        raise ValueError(
            f'{refused} does not go with cache_implementation="static", whose steps do not wait for the host; leave '
            "one of them out"
        )


def _prompt_mask(input_ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    if mask is None:
        return None
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)} and input_ids {tuple(input_ids.shape)}; they must agree"
        )
    empty = (mask.sum(dim=1) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"attention_mask hides every token of samples {empty}; mask only padding")
    return None if bool(mask.all()) else mask.long()


def _without_padding(input_ids: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    if mask is None:
        return list(input_ids)
    return [row[real.bool()] for row, real in zip(input_ids, mask, strict=True)]


def _stop_sequences(config: LladaVGenerationConfig, tokenizer: Any, device: torch.device) -> list[torch.Tensor]:
    if not config.stop_strings:
        return []
    if tokenizer is None:
        raise ValueError(f"stop_strings={config.stop_strings} are text: pass tokenizer=processor.tokenizer")
    sequences = [tokenizer(text, add_special_tokens=False).input_ids for text in config.stop_strings]
    for text, sequence in zip(config.stop_strings, sequences, strict=True):
        if not sequence:
            raise ValueError(f"the stop string {text!r} has no tokens and could never be found; leave it out")
    return [torch.tensor(sequence, dtype=torch.long, device=device) for sequence in sequences]


def _constraints(
    config: LladaVGenerationConfig,
    processors: Sequence[Any] | None,
    allowed_tokens_fn: AllowedTokens | None,
    prompts: list[torch.Tensor],
) -> list[Constraint]:
    """Logits processors come first, as in transformers, then what forbids tokens."""
    constraints: list[Constraint] = []
    if processors:
        constraints.append(LogitsProcessors(processors, prompts, config.mask_token_id))
    if allowed_tokens_fn is not None:
        constraints.append(AllowedTokensConstraint(allowed_tokens_fn))
    if config.no_repeat_ngram_size is not None:
        constraints.append(NoRepeatedNgrams(config.no_repeat_ngram_size, config.mask_token_id))
    return constraints
