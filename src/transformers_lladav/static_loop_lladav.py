"""The denoising loop in tensors whose shapes never change, for `torch.compile` and CUDA graphs.

Every sample takes part in every step, whether it is done or not, and what is not to be written is masked out: nothing
in a step depends on values that only the device knows, so that the host need not wait for them. Tokens are those of
the ordinary loop. transformers calls this `cache_implementation="static"`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import CompileConfig
from transformers.generation.streamers import BaseStreamer

from .denoising_cache_lladav import DenoisingCache
from .denoising_lladav import DenoisingLoop, DenoisingStep, LoopExtras
from .forward_passes_lladav import ForwardPasses, LoopInputs
from .generation_configuration_lladav import LladaVGenerationConfig
from .sampling_lladav import Prediction, SampleDraws, predict

# Steps between two looks at who is done, which the host waits for; with a CPU there is no one else to wait for.
STEPS_PER_SYNC = 4
COMPILED_DEVICES = ("cuda", "xpu")


class StaticPasses(ForwardPasses):
    """Passes of all samples, whose keys and values stay in one place. Arguments as of [`ForwardPasses`]."""

    window: tuple[torch.Tensor, torch.Tensor]  # of the block, unless all passes are whole

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.interval != 1:
            self.cache = DenoisingCache(len(self.model.model.language_model.layers))

    def start_block(self, columns: torch.Tensor) -> None:
        """Find out what is live.

        Args:
            columns: (block,), of the block in the canvas.
        """
        if self.interval != 1:
            self.window = self._live_positions(columns)

    def look(self, whole: bool) -> None:
        """Say what the next pass runs.

        Args:
            whole: everything.
        """
        if self.cache is not None:
            self.cache.look_at(None if whole else self.window[0].repeat(self.views, 1))

    def block_logits(self, columns: torch.Tensor, whole: bool) -> torch.Tensor:
        """Head outputs of a block, guided if asked.

        Args:
            columns: (block,), of the block in the canvas.
            whole: run everything.

        Returns:
            (batch, block, output vocabulary).
        """
        hidden = self._whole_pass(self.members, columns) if whole else self._run_live(*self.window)
        return self._head(hidden.unflatten(0, (self.views, -1)))

    def buffers(self) -> list[torch.Tensor]:
        """What is written to again and again."""
        there = [] if self.cache is None else [layer for layer in self.cache.layers if layer.is_initialized]
        return [tensor for layer in there for tensor in (layer.keys, layer.values)]


class StaticLoop(DenoisingLoop):
    """[`DenoisingLoop`] without randomness and constraints, for steps that are compiled.

    Args:
        passes: run the model.
        inputs: as of [`DenoisingLoop`].
        config: the same.
        block_length: the same.
        steps_per_block: the same.
        extras: the same; no constraints, no time limit.
        compile_config: how the steps that there are most of are compiled; None for not at all.
    """

    passes: StaticPasses

    def __init__(
        self,
        passes: StaticPasses,
        inputs: LoopInputs,
        config: LladaVGenerationConfig,
        block_length: int,
        steps_per_block: list[int],
        extras: LoopExtras,
        compile_config: CompileConfig | None = None,
    ) -> None:
        super().__init__(passes, inputs, config, block_length, steps_per_block, extras)
        self.everyone = torch.arange(len(self.answer), device=self.answer.device)
        self.steps_per_sync = 1 if self.answer.device.type == "cpu" else STEPS_PER_SYNC
        self.observed = config.output_history or extras.on_step is not None
        self.compiled = None if compile_config is None else compiled_step(compile_config)

    def run(self, prompt: torch.Tensor, streamer: BaseStreamer | None = None) -> list[torch.Tensor]:
        """Denoise all blocks, as [`DenoisingLoop`] does."""
        self.observed |= streamer is not None
        return super().run(prompt, streamer)

    def denoise_block(self, block: int) -> Iterator[int]:
        """Take steps until a block has no competing masks, or no steps are left.

        Args:
            block: index of the block.

        Yields:
            The index of each step, after it.
        """
        where = self._columns(block)
        columns = self.indices[where]
        masked = self._competing(columns).sum(dim=1)  # (batch,)
        self.early.start_block(len(columns), columns.device)
        self.passes.start_block(columns)
        active = masked  # found out below, before the first step
        for step in range(self.max_steps):
            whole = self.passes.is_whole(where, step)
            # A whole pass costs too much to run it for nobody.
            if whole or self.observed or step % self.steps_per_sync == 0:
                active = self._active(columns)
                if not bool(active.any()):
                    break
            number = torch.tensor(step, device=columns.device)
            prediction, committed = self._advance(columns, number, masked, whole)
            if self.extras.on_step is not None:
                found = (committed[active], prediction.tokens[active], prediction.confidence[active])
                samples = self.everyone[active]
                self.extras.on_step(DenoisingStep(block, step, where.start, samples, self.answer.clone(), *found))
            yield step
        self._ask_criteria(where)

    def _active(self, columns: torch.Tensor) -> torch.Tensor:
        """Samples with something to write, (batch,)."""
        return self._competing(columns).any(dim=1) & ~self.finished

    def _advance(
        self, columns: torch.Tensor, step: torch.Tensor, masked: torch.Tensor, whole: bool
    ) -> tuple[Prediction, torch.Tensor]:
        """A step, compiled if it is of the kind that there are most of."""
        self.passes.look(whole)
        if self.compiled is None or whole != (self.passes.interval == 1):
            return self.take_step(columns, step, masked, whole)
        for tensor in self._state():
            torch._dynamo.mark_static_address(tensor, guard=False)
        return self.compiled(self, columns, step, masked, whole)

    def _state(self) -> list[torch.Tensor]:
        """What steps write to, which CUDA graphs need to find where it was."""
        loop = [self.answer, self.scores, self.finished, self.stop_at, self.sequence_stop_at, self.steps_taken]
        return [
            *loop,
            self.early.previous,
            self.early.unchanged,
            self.inputs.embeds,
            self.passes.whole,
            *self.passes.buffers(),
        ]

    def take_step(
        self, columns: torch.Tensor, step: torch.Tensor, masked: torch.Tensor, whole: bool
    ) -> tuple[Prediction, torch.Tensor]:
        """Predict a block and commit what the rule chooses, without asking the device for any value.

        Args:
            columns: (block,), of the block in the canvas.
            step: (), index of the step inside the block.
            masked: (batch,), how many masks each sample had at the start of the block.
            whole: run whole sequences.

        Returns:
            What was predicted, and the positions that were written, (batch, block).
        """
        live = self.answer[:, columns]
        competing = self._competing(columns) & ~self.finished[:, None]
        active = competing.any(dim=1)
        logits = self._writable(self.passes.block_logits(columns, whole).flatten(0, 1))
        prediction = predict(logits, competing, self.sampling, SampleDraws([]))
        committed = self._chosen(self.everyone, prediction, competing, masked, step)
        committed |= self._completed_early(self.everyone, live, prediction, competing)
        self._write(columns, prediction, committed)
        self.steps_taken += active
        self.passes.whole += active * self.passes.views * whole
        self._update_stops(self.everyone)
        return prediction, committed

    def _write(self, columns: torch.Tensor, prediction: Prediction, committed: torch.Tensor) -> None:
        """Write tokens into the canvas, and their embeddings into the sequence."""
        tokens = torch.where(committed, prediction.tokens, self.answer[:, columns])
        scores = torch.where(committed, prediction.confidence.to(self.scores.dtype), self.scores[:, columns])
        self.answer[:, columns] = tokens
        self.scores[:, columns] = scores
        # A position that a row does not have is its block's first one over again, and is written the same.
        there, embeds = self.inputs.present[:, columns], self.inputs.embeds
        tokens, committed = (torch.where(there, part, part[:, :1]) for part in (tokens, committed))
        slots = self.inputs.block_positions(columns)[:, :, None].expand(-1, -1, embeds.shape[2])
        new = torch.where(committed[:, :, None], self.embed(tokens).to(embeds.dtype), embeds.gather(1, slots))
        embeds.scatter_(1, slots, new)


_COMPILED: dict[str, Any] = {}  # `StaticLoop.take_step` for each way of compiling


def compiled_step(config: CompileConfig) -> Callable[..., tuple[Prediction, torch.Tensor]]:
    """`StaticLoop.take_step`, compiled once for each way of compiling, so that later loops find it ready.

    Args:
        config: options of `torch.compile`.

    Returns:
        The compiled function.
    """
    key = repr(sorted(config.to_dict().items()))
    if key not in _COMPILED:
        _COMPILED[key] = torch.compile(StaticLoop.take_step, **config.to_dict())
    return _COMPILED[key]
