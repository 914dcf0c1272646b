"""The block-wise denoising loop: answers out of masks.

Exact mode of the official implementation (LLaDA, arXiv:2502.09992, algorithms 4 and 5; LLaDA-V, arXiv:2505.16933),
for any batch. Differences, on purpose: the prompt is never changed, only competing positions are ever committed, and
pictures are encoded once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from .generation_configuration_lladav import LladaVGenerationConfig
from .sampling_lladav import (
    OfficialDraws,
    RandomDraws,
    SampleDraws,
    commits_per_step,
    most_confident,
    predict,
    sequence_stop,
    token_stop,
)


@dataclass
class DenoisingStep:
    """What one step did, for `callback_on_step_end`.

    Attributes:
        block: index of the block.
        step: index of the step inside the block.
        samples: (active,), rows of the batch that took part.
        tokens: (batch, canvas), the canvas after the step.
        committed: (active, block), positions written in this step.
        candidates: (active, block), best token per position that was masked.
        confidence: (active, block), its confidence.
    """

    block: int
    step: int
    samples: torch.Tensor
    tokens: torch.Tensor
    committed: torch.Tensor
    candidates: torch.Tensor
    confidence: torch.Tensor


@dataclass
class LoopInputs:
    """Everything about the prompt that stays the same over all steps.

    Attributes:
        embeds: (batch, prompt, hidden), pictures in place.
        attention_mask: (batch, prompt) or None when nothing is padded.
        suffix: (batch, suffix) token ids, possibly of width 0.
    """

    embeds: torch.Tensor
    attention_mask: torch.Tensor | None
    suffix: torch.Tensor


class DenoisingLoop:
    """Runs one canvas per sample from all masks to an answer, block by block.

    Args:
        model: the [`LladaVForMaskedDiffusion`].
        inputs: the prompt.
        config: complete settings: ids resolved, values checked.
        stops: tokenised stop strings, each (tokens,).
        generator: None, one generator, or one per sample.
        official_draws: draw random numbers as the official code does (batch 1).
        on_step: called with a `DenoisingStep` after each step.
    """

    def __init__(
        self,
        model: Any,
        inputs: LoopInputs,
        config: LladaVGenerationConfig,
        stops: list[torch.Tensor],
        generator: torch.Generator | list[torch.Generator] | None = None,
        official_draws: bool = False,
        on_step: Callable[[DenoisingStep], None] | None = None,
    ) -> None:
        self.model, self.inputs, self.config, self.stops, self.on_step = model, inputs, config, stops, on_step
        self.canvas, self.block, self.steps_per_block = config.schedule()
        batch, self.prompt_length, _ = inputs.embeds.shape
        device = inputs.embeds.device
        self.answer = torch.full((batch, self.canvas), config.mask_token_id, dtype=torch.long, device=device)
        self.finished = torch.zeros(batch, dtype=torch.bool, device=device)
        self.stop_tokens = torch.tensor(config.stop_token_ids, dtype=torch.long, device=device)
        self.sequence_stop_at = torch.full((batch,), self.canvas, dtype=torch.long, device=device)
        self.stop_at = self.sequence_stop_at.clone()
        self.steps_taken = torch.zeros(batch, dtype=torch.long, device=device)
        writable = range(model.config.output_vocab_size)
        suppressed = [token for token in model.config.suppressed_token_ids if token in writable]
        self.suppressed = torch.tensor(suppressed, dtype=torch.long, device=device)
        self.embed = model.get_input_embeddings()
        self.official_draws = official_draws
        self.generator = None if isinstance(generator, list) else generator
        self.generators: list[torch.Generator] = []  # nothing is drawn, not even seeds, where nothing is random
        if not official_draws and (config.temperature > 0 or config.remasking == "random"):
            self.generators = self._per_sample(generator, batch, device)

    @staticmethod
    def _per_sample(
        generator: torch.Generator | list[torch.Generator] | None, batch: int, device: torch.device
    ) -> list[torch.Generator]:
        """One generator per sample: as given, or seeded in order from the one given or the global one."""
        if isinstance(generator, list):
            if len(generator) != batch:
                raise ValueError(f"generator has {len(generator)} entries for a batch of {batch}; pass one per sample")
            return generator
        where = "cpu" if generator is None else generator.device
        seeds = torch.randint(2**63 - 1, (batch,), generator=generator, device=where).tolist()
        return [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def run(self, streamer: BaseStreamer | None = None) -> list[torch.Tensor]:
        """Denoise all blocks.

        Args:
            streamer: gets each block's draft after every step (`put_draft`) and each finished block (`put`).

        Returns:
            The canvas after every step, (batch, canvas) each, if the settings ask for the history; else nothing.
        """
        history: list[torch.Tensor] = []
        for block in range(self.canvas // self.block):
            for step, count in enumerate(commits_per_step(self.block, self.steps_per_block)):
                self.step(block, step, count)
                if self.config.output_history:
                    history.append(self.answer.clone())
                if streamer is not None and hasattr(streamer, "put_draft"):
                    streamer.put_draft(value=self._shown(block))
                if bool(self.finished.all()):
                    break
            if streamer is not None:
                streamer.put(self._shown(block))
            if bool(self.finished.all()):
                break
        return history

    def _shown(self, block: int) -> torch.Tensor:
        """The tokens of a block as a streamer sees them, (tokens,) at batch size 1: nothing from a stop on."""
        start = block * self.block
        if len(self.answer) > 1:
            return self.answer[:, start : start + self.block].cpu()
        end = min(start + self.block, max(start, int(self.stop_at[0])))
        return self.answer[0, start:end].cpu()

    def step(self, block: int, step: int, count: int) -> None:
        """Commit `count` tokens of a block in every sample that is not finished.

        Args:
            block: index of the block.
            step: index of the step inside it.
            count: how many positions to commit at most.
        """
        samples = (~self.finished).nonzero()[:, 0]  # (active,)
        columns = slice(block * self.block, (block + 1) * self.block)
        live = self.answer[samples, columns]  # (active, block)
        positions = torch.arange(columns.start, columns.stop, device=live.device)
        competing = (live == self.config.mask_token_id) & (positions < self.stop_at[samples, None])
        logits = self._logits(samples, columns, competing)  # (competing positions, vocabulary)
        prediction = predict(
            logits,
            competing,
            self.suppressed,
            self.config.temperature,
            self.config.remasking,
            self._draws(samples, columns),
        )
        committed = most_confident(prediction.confidence, competing, count)
        self.answer[samples, columns] = torch.where(committed, prediction.tokens, live)
        self.steps_taken[samples] += 1
        self._update_stops(samples)
        if self.on_step is not None:
            self.on_step(
                DenoisingStep(
                    block, step, samples, self.answer.clone(), committed, prediction.tokens, prediction.confidence
                )
            )

    def _draws(self, samples: torch.Tensor, columns: slice) -> RandomDraws:
        if self.official_draws:
            length = self.prompt_length + self.canvas + self.inputs.suffix.shape[1]
            return OfficialDraws(self.generator, length, self.prompt_length + columns.start)
        return SampleDraws([self.generators[index] for index in samples.tolist()] if self.generators else [])

    def _update_stops(self, samples: torch.Tensor) -> None:
        """Find stops in the whole canvas; a sample is finished when nothing before its stop is masked."""
        answer = self.answer[samples]
        self.sequence_stop_at[samples] = sequence_stop(answer, self.stops, self.sequence_stop_at[samples])
        stop_at = torch.minimum(token_stop(answer, self.stop_tokens), self.sequence_stop_at[samples])
        before = torch.arange(self.canvas, device=answer.device) < stop_at[:, None]
        masked = (answer == self.config.mask_token_id) & before
        self.stop_at[samples] = stop_at
        self.finished[samples] = ~masked.any(dim=1)

    def _logits(self, samples: torch.Tensor, columns: slice, rows: torch.Tensor) -> torch.Tensor:
        """Head outputs at `rows` (active, block) of the live block, guided if asked, (rows, output vocabulary)."""
        everyone = len(samples) == len(self.answer)
        prompt = self.inputs.embeds if everyone else self.inputs.embeds[samples]
        window = torch.cat([self.answer[samples], self.inputs.suffix[samples]], dim=1)
        embeds = torch.cat([prompt, self.embed(window).to(prompt.dtype)], dim=1)
        mask = self.inputs.attention_mask
        if mask is not None:
            mask = torch.cat([mask[samples], mask.new_ones(window.shape)], dim=1)
        if self.config.guidance_scale == 1:
            return self._head_rows(embeds, mask, columns, rows)
        blind = embeds.clone()
        blind[:, : self.prompt_length] = self.embed(self.answer.new_tensor([self.config.mask_token_id]))
        both = self._head_rows(
            torch.cat([embeds, blind]), None if mask is None else mask.repeat(2, 1), columns, rows.repeat(2, 1)
        )
        conditional, unconditional = both.chunk(2)
        return unconditional + self.config.guidance_scale * (conditional - unconditional)

    def _head_rows(
        self, embeds: torch.Tensor, mask: torch.Tensor | None, columns: slice, rows: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.model.model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        start = self.prompt_length + columns.start
        live = hidden[:, start : start + self.block][rows]  # (rows, hidden)
        return self.model.lm_head(live)[:, : self.model.config.output_vocab_size]
