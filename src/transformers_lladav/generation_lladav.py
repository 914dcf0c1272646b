"""`generate()` of LLaDA-V: checks arguments, encodes the prompt once, runs the denoising loop, returns answers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .denoising_lladav import DenoisingLoop, DenoisingStep, LoopInputs
from .generation_configuration_lladav import LladaVGenerationConfig, explain_unknown, resolve_aliases

logger = logging.get_logger(__name__)

PICTURE_INPUTS = (
    "pixel_values", "image_sizes", "image_tile_counts", "pixel_values_videos", "video_frame_counts",
)  # fmt: skip
# What processors and pipelines pass along and the loop has no use for.
TOLERATED_INPUTS = ("batch_num_images", "token_type_ids", "mm_token_type_ids", "use_cache", "synced_gpus")


@dataclass
class LladaVGenerationOutput(ModelOutput):
    """Output of [`LladaVGenerationMixin.generate`] with `return_dict_in_generate=True`.

    Attributes:
        sequences: (batch, length), prompt, answer before its stop, suffix; short rows are padded on the right.
        answers: list of (tokens,) per sample, the answer before its stop without prompt and suffix.
        denoising_steps: (batch,), steps each sample took part in.
        tokens_per_forward: (batch,), answer tokens (the stop included) over forward passes of that sample.
        stopped: (batch,) boolean, whether a stop ended the answer; otherwise the canvas was full.
        history: list over steps of (batch, canvas) token ids, with `output_history=True`.
    """

    sequences: torch.Tensor
    answers: list[torch.Tensor] | None = None
    denoising_steps: torch.Tensor | None = None
    tokens_per_forward: torch.Tensor | None = None
    stopped: torch.Tensor | None = None
    history: list[torch.Tensor] | None = None


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
        generator: torch.Generator | list[torch.Generator] | None = None,
        suffix_ids: torch.Tensor | None = None,
        generation_suffix: str | None = None,
        callback_on_step_end: Callable[[DenoisingStep], None] | None = None,
        official_draws: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor | LladaVGenerationOutput:
        """Answer a batch of prompts by block-wise denoising.

        Args:
            input_ids: (batch, prompt) from the processor, padded on either side.
            generation_config: base settings; the model's own by default.
            streamer: a `TextDiffusionStreamer` or any with `put` and `end`.
            attention_mask: (batch, prompt), 0 at padding; all ones by default.
            tokenizer: needed for `stop_strings` and `generation_suffix`.
            generator: one per sample, or one that seeds them in order; used with `temperature > 0` and
                `remasking="random"`.
            suffix_ids: (suffix,) or (batch, suffix) tokens that stand after the answer from the start.
            generation_suffix: the same as text.
            callback_on_step_end: called with a `DenoisingStep` after every step.
            official_draws: reproduce the random numbers of the official code; batch 1, `generator` as one object.
            **kwargs: settings of [`LladaVGenerationConfig`] (official aliases `steps`, `gen_length`, `cfg_scale`
                included), which win over `generation_config`, and the processor's picture and video inputs.

        Returns:
            (batch, length) prompt, answer before its stop, suffix; or a [`LladaVGenerationOutput`].

        Raises:
            TypeError: for an unknown argument.
            ValueError: for values that break a rule; the message gives value, rule and fix.
        """
        config, pictures = self._prepare_settings(generation_config, kwargs)
        if input_ids is None or input_ids.ndim != 2:
            raise ValueError("input_ids must be given as (batch, prompt); use the processor's output")
        if official_draws and len(input_ids) != 1:
            raise ValueError(f"official_draws needs batch size 1, not {len(input_ids)}: the official code has no more")
        suffix = self._suffix(input_ids, suffix_ids, generation_suffix, tokenizer)
        stops = self._stop_sequences(config, tokenizer, input_ids.device)
        mask = self._prompt_mask(input_ids, attention_mask)
        self._check_positions(input_ids, mask, config, suffix)
        embeds, _, _ = self.model.embed_inputs(input_ids, **pictures)
        loop = DenoisingLoop(
            self, LoopInputs(embeds, mask, suffix), config, stops, generator, official_draws, callback_on_step_end
        )
        if streamer is not None:
            streamer.put(input_ids[0].cpu() if len(input_ids) == 1 else input_ids.cpu())
        history = loop.run(streamer)
        if streamer is not None:
            streamer.end()
        return self._output(input_ids, loop, history if config.output_history else None)

    def _prepare_settings(
        self, base: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[LladaVGenerationConfig, dict[str, Any]]:
        """Split keyword arguments into complete settings and picture inputs."""
        pictures = {name: kwargs.pop(name) for name in PICTURE_INPUTS if name in kwargs}
        kwargs = {name: value for name, value in kwargs.items() if name not in TOLERATED_INPUTS}
        known = self.generation_config_class.names()
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            raise TypeError("; ".join(explain_unknown(name, known) for name in unknown))
        config = copy.deepcopy(self._own_kind(base if base is not None else self.generation_config))
        for name, value in resolve_aliases(kwargs).items():
            setattr(config, name, value)
        config.validate()
        if config.eos_token_id is None and "eos_token_id" not in kwargs:
            config.eos_token_id = self.config.text_config.eos_token_id
        if config.mask_token_id is None:
            config.mask_token_id = self.config.mask_token_id
        if config.pad_token_id is None:
            config.pad_token_id = self.config.text_config.pad_token_id
        config.schedule()
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
        suffix = torch.as_tensor(suffix_ids, dtype=torch.long, device=input_ids.device)
        suffix = suffix.expand(batch, -1) if suffix.ndim == 1 else suffix
        if suffix.shape[0] != batch:
            raise ValueError(
                f"suffix_ids has {suffix.shape[0]} rows for a batch of {batch}; pass one row, or one each"
            )
        return suffix

    def _stop_sequences(
        self, config: LladaVGenerationConfig, tokenizer: Any, device: torch.device
    ) -> list[torch.Tensor]:
        if not config.stop_strings:
            return []
        if tokenizer is None:
            raise ValueError(f"stop_strings={config.stop_strings} are text: pass tokenizer=processor.tokenizer")
        sequences = [tokenizer(text, add_special_tokens=False).input_ids for text in config.stop_strings]
        return [torch.tensor(sequence, dtype=torch.long, device=device) for sequence in sequences]

    def _prompt_mask(self, input_ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        if mask is None:
            return None
        if mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)} and input_ids {tuple(input_ids.shape)}; they must agree"
            )
        return None if bool(mask.all()) else mask.long()

    def _check_positions(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        config: LladaVGenerationConfig,
        suffix: torch.Tensor,
    ) -> None:
        prompt = input_ids.shape[1] if mask is None else int(mask.sum(dim=1).max())
        canvas, limit = config.schedule()[0], self.config.text_config.max_position_embeddings
        if prompt + canvas + suffix.shape[1] > limit:
            raise ValueError(
                f"the prompt has {prompt} tokens and the answer {canvas + suffix.shape[1]}, but the model has {limit} "
                "positions; shorten the prompt, use fewer pictures, or lower max_new_tokens"
            )

    def _output(
        self, input_ids: torch.Tensor, loop: DenoisingLoop, history: list[torch.Tensor] | None
    ) -> torch.Tensor | LladaVGenerationOutput:
        config = loop.config
        answers = [row[:stop] for row, stop in zip(loop.answer, loop.stop_at.tolist(), strict=True)]
        rows = [torch.cat(parts) for parts in zip(input_ids, answers, loop.inputs.suffix, strict=True)]
        padding = config.pad_token_id if config.pad_token_id is not None else 0
        sequences = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        if not config.return_dict_in_generate:
            return sequences
        stopped = loop.stop_at < loop.canvas
        forwards = loop.steps_taken * (1 if config.guidance_scale == 1 else 2)
        return LladaVGenerationOutput(
            sequences=sequences,
            answers=answers,
            denoising_steps=loop.steps_taken,
            tokens_per_forward=(loop.stop_at + stopped) / forwards.clamp(min=1),
            stopped=stopped,
            history=history,
        )

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | None,
        trust_remote_code: bool | None = None,
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
