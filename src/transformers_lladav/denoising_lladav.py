"""The block-wise denoising loop: answers out of masks.

Exact mode of the official implementation (LLaDA, arXiv:2502.09992, algorithms 4 and 5; LLaDA-V, arXiv:2505.16933),
for any batch, and everything that is opt-in on top. Differences, on purpose: the prompt is never changed, only
competing positions are ever committed, and pictures are encoded once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from .commit_rules_lladav import Offer, commits_per_step
from .constraints_lladav import Constraint, permitted_together, restrict_all
from .forward_passes_lladav import ForwardPasses, LoopInputs
from .generation_configuration_lladav import LladaVGenerationConfig
from .sampling_lladav import (
    OfficialDraws,
    Prediction,
    RandomDraws,
    SampleDraws,
    predict,
    sample_generators,
    widest_float,
)
from .stopping_lladav import StableAndConfident, sequence_stop, token_stop


@dataclass
class DenoisingStep:
    """What one step did, for `callback_on_step_end`.

    Attributes:
        block: index of the block.
        step: index of the step inside the block.
        start: first position of the block in the canvas.
        samples: (active,), rows of the batch that took part.
        tokens: (batch, canvas), the canvas after the step.
        committed: (active, block), positions written in this step.
        candidates: (active, block), best token per position that was masked.
        confidence: (active, block), its confidence.
    """

    block: int
    step: int
    start: int
    samples: torch.Tensor
    tokens: torch.Tensor
    committed: torch.Tensor
    candidates: torch.Tensor
    confidence: torch.Tensor


@dataclass
class LoopExtras:
    """What is asked of a loop beyond its settings.

    Attributes:
        stops: tokenised stop strings, each (tokens,).
        suppressed: (tokens,), ids that are never written.
        constraints: what may be written where.
        timed: stopping criteria asked after every step; the live block is then completed at once.
        criteria: stopping criteria asked after every block, with (1, known tokens) ids of each sample.
        prompts: per sample, its prompt ids without padding; needed with `criteria`.
        generator: None, one generator, or one per sample.
        official_draws: draw random numbers as the official code does (batch 1).
        on_step: called with a `DenoisingStep` after each step.
    """

    stops: list[torch.Tensor] = field(default_factory=list)
    suppressed: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    constraints: list[Constraint] = field(default_factory=list)
    timed: list[Any] = field(default_factory=list)
    criteria: list[Any] = field(default_factory=list)
    prompts: list[torch.Tensor] = field(default_factory=list)
    generator: torch.Generator | list[torch.Generator] | None = None
    official_draws: bool = False
    on_step: Callable[[DenoisingStep], None] | None = None


class DenoisingLoop:
    """Runs one canvas per sample from all masks to an answer, block by block.

    Args:
        passes: run the model.
        inputs: the sequences; `embeds` is written to.
        config: complete settings: ids resolved, values checked.
        block_length: positions denoised together; the last block may be shorter.
        steps_per_block: forward passes per block of each sample.
        extras: stops, constraints, criteria, randomness.
    """

    def __init__(
        self,
        passes: ForwardPasses,
        inputs: LoopInputs,
        config: LladaVGenerationConfig,
        block_length: int,
        steps_per_block: list[int],
        extras: LoopExtras,
    ) -> None:
        self.passes, self.inputs, self.config, self.extras = passes, inputs, config, extras
        self.block_length, self.max_steps = block_length, max(steps_per_block)
        batch, self.canvas = inputs.slots.shape
        device = inputs.embeds.device
        self.steps_per_block = torch.tensor(steps_per_block, device=device)  # (batch,)
        self.rule, self.sampling = config.commit_rule(), config.sampling()
        self.answer = torch.full((batch, self.canvas), config.mask_token_id, dtype=torch.long, device=device)
        self.scores = torch.full((batch, self.canvas), torch.nan, dtype=widest_float(device), device=device)
        self.finished = torch.zeros(batch, dtype=torch.bool, device=device)
        self.stop_tokens = torch.tensor(config.stop_token_ids, dtype=torch.long, device=device)
        self.sequence_stop_at = torch.full((batch,), self.canvas, dtype=torch.long, device=device)
        self.stop_at = self.sequence_stop_at.clone()  # where the model ended its answer
        self.cut_at = self.sequence_stop_at.clone()  # where a stopping criterion ended it
        self.out_of_time = False
        self.steps_taken = torch.zeros(batch, dtype=torch.long, device=device)
        self.indices = torch.arange(self.canvas, device=device)
        self.embed = passes.model.get_input_embeddings()
        self.early = StableAndConfident(config.stability_threshold, config.confidence_threshold, batch)
        self.generators: list[torch.Generator] = []  # nothing is drawn, not even seeds, where nothing is random
        if not extras.official_draws and (config.temperature > 0 or config.remasking == "random"):
            self.generators = sample_generators(extras.generator, batch, device)

    def run(self, prompt: torch.Tensor, streamer: BaseStreamer | None = None) -> list[torch.Tensor]:
        """Denoise all blocks.

        Args:
            prompt: (batch, prompt) ids, which a streamer gets first.
            streamer: gets each block's draft after every step (`put_draft`) and each finished block (`put`).

        Returns:
            The canvas after every step, (batch, canvas) each, if the settings ask for the history; else nothing.
        """
        history: list[torch.Tensor] = []
        if streamer is not None:
            streamer.put(prompt[0].cpu() if len(prompt) == 1 else prompt.cpu())
        for block in range(-(-self.canvas // self.block_length)):
            if bool(self.finished.all()):
                break
            for _ in self.denoise_block(block):
                if self.config.output_history:
                    history.append(self.answer.clone())
                if streamer is not None and hasattr(streamer, "put_draft"):
                    streamer.put_draft(value=self._shown(block))
            if streamer is not None:
                streamer.put(self._shown(block))
        if streamer is not None:
            streamer.end()
        return history

    def _columns(self, block: int) -> slice:
        return slice(block * self.block_length, min((block + 1) * self.block_length, self.canvas))

    def _shown(self, block: int) -> torch.Tensor:
        """The tokens of a block as a streamer sees them, (tokens,) at batch size 1: nothing from a stop on.

        In a batch, (batch, block), an end token stands at every position from a stop on, and where there is no hole.
        """
        columns = self._columns(block)
        if len(self.answer) > 1:
            behind = self.indices[columns] >= self.ends[:, None]
            end_token = next(iter(self.config.stop_token_ids), self.config.pad_token_id)
            behind |= ~self.inputs.present[:, columns]
            shown = self.answer[:, columns]
            return (shown if end_token is None else shown.masked_fill(behind, end_token)).cpu()
        end = min(columns.stop, max(columns.start, int(self.ends[0])))
        return self.answer[0, columns.start : end].cpu()

    @property
    def ends(self) -> torch.Tensor:
        """Where each answer ends, (batch,)."""
        return torch.minimum(self.stop_at, self.cut_at)

    def finish_reasons(self) -> list[str]:
        """Why each answer ended: "stop", "stop_string", "stopping_criteria" or "length"."""
        reasons = []
        for stop, sequence, cut in zip(
            self.stop_at.tolist(), self.sequence_stop_at.tolist(), self.cut_at.tolist(), strict=True
        ):
            if stop < self.canvas and stop <= cut:
                reasons.append("stop_string" if sequence == stop else "stop")
            else:
                reasons.append("stopping_criteria" if cut < self.canvas else "length")
        return reasons

    def denoise_block(self, block: int) -> Iterator[int]:
        """Take steps until a block has no competing masks, or no steps are left.

        The fixed schedule uses its steps up. Other rules may be done earlier; constraints may hold positions back,
        which then take further steps.

        Args:
            block: index of the block.

        Yields:
            The index of each step, after it.
        """
        columns = self._columns(block)
        masked = self._competing(columns).sum(dim=1)  # (batch,)
        self.early.start_block(columns.stop - columns.start, masked.device)
        step = 0
        while step < self.max_steps or self.extras.constraints:
            competing = self._competing(columns)  # (batch, block)
            samples = (competing.any(dim=1) & ~self.finished).nonzero()[:, 0]  # (active,)
            if not len(samples):
                break
            self.step(block, step, samples, competing[samples], masked[samples])
            if step >= self.max_steps + self.block_length:
                raise ValueError(
                    f"the constraints let no token be written in block {block}; a function for allowed tokens must "
                    "answer the same each time it is asked the same"
                )
            yield step
            step += 1
        self._ask_criteria(columns)

    def _competing(self, columns: slice | torch.Tensor) -> torch.Tensor:
        """Positions of a block that may be written, (batch, block)."""
        masked = self.answer[:, columns] == self.config.mask_token_id
        return masked & self.inputs.present[:, columns] & (self.indices[columns] < self.stop_at[:, None])

    def step(
        self, block: int, step: int, samples: torch.Tensor, competing: torch.Tensor, masked: torch.Tensor
    ) -> None:
        """Predict a block and commit what the rule chooses.

        Args:
            block: index of the block.
            step: index of the step inside it.
            samples: (active,), rows that take part.
            competing: (active, block), positions that may be written.
            masked: (active,), how many masks each had at the start of the block.
        """
        columns = self._columns(block)
        live = self.answer[samples, columns]  # (active, block)
        prediction = self.predict(samples, columns, competing, step)
        # Whatever constraints held back until after the last planned step is written as soon as it fits.
        committed = self._chosen(samples, prediction, competing, masked, step) if step < self.max_steps else competing
        committed |= self._completed_early(samples, live, prediction, competing)
        if self.extras.constraints:
            committed = self._fitting_together(samples, columns, prediction, committed)
        self._commit(samples, columns, prediction, committed)
        self.steps_taken[samples] += 1
        self._update_stops(samples)
        if self.extras.on_step is not None:
            found = (committed, prediction.tokens, prediction.confidence)
            self.extras.on_step(DenoisingStep(block, step, columns.start, samples, self.answer.clone(), *found))

    def _chosen(
        self,
        samples: torch.Tensor,
        prediction: Prediction,
        competing: torch.Tensor,
        masked: torch.Tensor,
        step: int | torch.Tensor,
    ) -> torch.Tensor:
        """What the rule commits, (rows, block)."""
        steps = self.steps_per_block[samples]
        offer = Offer(
            confidence=prediction.confidence,
            entropy=prediction.entropy,
            competing=competing,
            planned=commits_per_step(masked, step, steps),
            needed=-(-competing.sum(dim=1) // (steps - step).clamp(min=1)),
        )
        return self.rule.select(offer) & competing

    def predict(self, samples: torch.Tensor, columns: slice, competing: torch.Tensor, step: int) -> Prediction:
        """Candidates for the masked positions of a block.

        Args:
            samples: (active,), rows that take part.
            columns: of the block.
            competing: (active, block).
            step: index of the step inside the block.

        Returns:
            Candidates with confidences, (active, block) each.
        """
        logits = self.passes.logits(samples, self.finished, columns, competing, step)  # (competing, vocabulary)
        if self.extras.constraints:
            places = torch.zeros(len(samples), self.canvas, dtype=torch.bool, device=competing.device)
            places[:, columns] = competing
            logits = restrict_all(
                self.extras.constraints, samples.tolist(), self.answer[samples], places, self._writable(logits)
            )
        return predict(self._writable(logits), competing, self.sampling, self._draws(samples, columns))

    def _writable(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(1, self.extras.suppressed, -torch.inf)

    def _draws(self, samples: torch.Tensor, columns: slice) -> RandomDraws:
        if self.extras.official_draws:
            length, first = self.inputs.embeds.shape[1], int(self.inputs.slots[0, columns.start])
            generator = self.extras.generator
            return OfficialDraws(None if isinstance(generator, list) else generator, length, first)
        return SampleDraws([self.generators[index] for index in samples.tolist()] if self.generators else [])

    def _completed_early(
        self, samples: torch.Tensor, live: torch.Tensor, prediction: Prediction, competing: torch.Tensor
    ) -> torch.Tensor:
        """Everything that competes, in samples whose block is stable and confident or whose time is up."""
        done = torch.zeros(len(samples), dtype=torch.bool, device=live.device)
        if self.config.stability_threshold is not None or self.config.confidence_threshold is not None:
            canvas = torch.where(competing, prediction.likeliest, live)
            done |= self.early(samples, canvas, prediction.entropy, competing)
        if any(bool(torch.as_tensor(item(self.answer, None)).any()) for item in self.extras.timed):
            self.out_of_time = True
            done[:] = True
        return done[:, None] & competing

    def _fitting_together(
        self, samples: torch.Tensor, columns: slice, prediction: Prediction, committed: torch.Tensor
    ) -> torch.Tensor:
        """Of the positions chosen, those whose tokens the constraints permit beside the surer ones."""
        fitting = torch.zeros_like(committed)
        for row, sample in enumerate(samples.tolist()):
            chosen = committed[row].nonzero()[:, 0]
            chosen = chosen[prediction.confidence[row, chosen].argsort(descending=True, stable=True)]
            kept = permitted_together(
                self.extras.constraints,
                sample,
                self.answer[sample],
                prediction.tokens[row, chosen].tolist(),
                (chosen + columns.start).tolist(),
            )
            fitting[row, chosen[kept]] = True
        return fitting

    def _commit(self, samples: torch.Tensor, columns: slice, prediction: Prediction, committed: torch.Tensor) -> None:
        """Write tokens into the canvas, and their embeddings into the sequence."""
        row, position = committed.nonzero(as_tuple=True)
        sample, position = samples[row], position + columns.start
        tokens = prediction.tokens[committed]
        self.answer[sample, position] = tokens
        self.scores[sample, position] = prediction.confidence[committed].to(self.scores.dtype)
        embeds = self.inputs.embeds
        embeds[sample, self.inputs.slots[sample, position]] = self.embed(tokens).to(embeds.dtype)

    def _update_stops(self, samples: torch.Tensor) -> None:
        """Find stops in the whole canvas; a sample is finished when nothing before its stop is masked."""
        answer = self.answer[samples]
        self.sequence_stop_at[samples] = sequence_stop(answer, self.extras.stops, self.sequence_stop_at[samples])
        stop_at = torch.minimum(token_stop(answer, self.stop_tokens), self.sequence_stop_at[samples])
        before = self.indices < stop_at[:, None]
        masked = (answer == self.config.mask_token_id) & before & self.inputs.present[samples]
        self.stop_at[samples] = stop_at
        self.finished[samples] |= ~masked.any(dim=1)

    def _ask_criteria(self, columns: slice) -> None:
        """End samples whose time is up or whose stopping criteria say so at the end of a block."""
        ended = ~self.finished & self.out_of_time
        for sample in (~self.finished & ~ended).nonzero()[:, 0].tolist() if self.extras.criteria else []:
            known = torch.cat([self.extras.prompts[sample], self.answer[sample, : columns.stop]])[None]
            if any(bool(torch.as_tensor(item(known, None)).any()) for item in self.extras.criteria):
                ended[sample] = True
        self.cut_at[ended] = columns.stop
        self.finished |= ended
