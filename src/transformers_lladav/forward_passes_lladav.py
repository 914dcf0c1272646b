"""The model's part in a denoising loop: which positions a pass runs, and what it takes over from an earlier one.

    whole     all positions: exact, and what all keys and values that are remembered come from
    live      the answer, what follows it and the question before it, on what is remembered of the rest (prompt cache)
    block     the block that is being written, on remembered keys and values of everything else (dual cache)

Fast-dLLM, arXiv:2505.22618, section 3. There, the first is repeated when a block begins, here after so many steps too,
and the whole prompt is remembered; the question at its end costs next to nothing beside a picture.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .denoising_cache_lladav import DenoisingCache
from .modeling_text_lladav import positions_from_mask

# Sequences from which on a pass over the whole answer is bound by arithmetic on current GPUs, no longer by memory.
LARGE_BATCH = 8


@dataclass
class LoopInputs:
    """The whole sequences, and which of their positions make up the canvas.

    Attributes:
        embeds: (batch, length, hidden), pictures in place, masks at the canvas.
        attention_mask: (batch, length) or None when nothing is padded.
        slots: (batch, canvas), where in the sequence each position of the canvas stands.
        present: (batch, canvas), which of them exist; rows with fewer holes have fewer.
        blind: (batch, length), what guidance hides: the prompt, not the canvas, a suffix or text around holes.
        tail: (batch, length), the part of the prompt that live passes run as well.
    """

    embeds: torch.Tensor
    attention_mask: torch.Tensor | None
    slots: torch.Tensor
    present: torch.Tensor
    blind: torch.Tensor
    tail: torch.Tensor

    def live_positions(self) -> torch.Tensor:
        """All but padding and the prompt before its tail, (batch, most of a row); the last one fills short rows up."""
        live = ~self.blind | self.tail
        live = live if self.attention_mask is None else live & self.attention_mask.bool()
        width = int(live.sum(dim=1).max())
        order = (~live).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]  # the live ones first, in order
        last = (live.sum(dim=1) - 1)[:, None]
        return order.gather(1, torch.arange(width, device=order.device).expand_as(order).minimum(last))

    def block_positions(self, columns: slice | torch.Tensor) -> torch.Tensor:
        """Where a block of the canvas stands, (batch, block); its first position takes the place of missing ones."""
        slots = self.slots[:, columns]
        return torch.where(self.present[:, columns], slots, slots[:, :1])


def chosen_cache(use_cache: str, batch: int, blocks: int) -> str:
    """What is remembered between steps.

    Args:
        use_cache: "prompt", "dual" or "auto".
        batch: samples.
        blocks: of the answer.

    Returns:
        "prompt" or "dual"; for "auto" the latter where it is worth its price: for a large batch, in which a pass over
        the whole answer takes longer than one over a block, and where the answer has more than one block.
    """
    if use_cache != "auto":
        return use_cache
    return "dual" if batch >= LARGE_BATCH and blocks > 1 else "prompt"


class ForwardPasses:
    """Runs a model for a loop.

    Args:
        model: the [`LladaVForMaskedDiffusion`].
        inputs: the sequences, as they are when a pass begins.
        mask_token_id: what guidance hides the prompt with.
        guidance_scale: weight of the conditional prediction; 1 is off.
        refresh_interval: whole passes begin each block and are then repeated after so many steps; 1 for no other kind
            of pass, None for a single whole pass.
        dual: remember everything but the live block, not the prompt only.

    Attributes:
        whole: (batch,), whole passes that each sample took part in; two for each if guided.
    """

    def __init__(
        self,
        model: Any,
        inputs: LoopInputs,
        mask_token_id: int,
        guidance_scale: float = 1.0,
        refresh_interval: int | None = 1,
        dual: bool = False,
    ) -> None:
        self.model, self.inputs, self.scale = model, inputs, guidance_scale
        self.interval, self.dual = refresh_interval, dual
        device = inputs.embeds.device
        hidden = model.get_input_embeddings()(torch.tensor([mask_token_id], device=device))
        self.mask_embedding = hidden.to(inputs.embeds.dtype)  # (1, hidden)
        batch, length = inputs.embeds.shape[:2]
        mask = inputs.attention_mask  # numbers the real tokens of a row
        places = torch.arange(length, device=device).expand(batch, -1) if mask is None else positions_from_mask(mask)
        self.places = places  # (batch, length)
        self.live = None if refresh_interval == 1 or dual else inputs.live_positions()
        self.cache: DenoisingCache | None = None
        self.members = torch.arange(len(inputs.slots), device=device)  # of the batch, whom the cache is of
        self.whole = torch.zeros(len(inputs.slots), dtype=torch.long, device=device)

    @property
    def views(self) -> int:
        """Sequences of each sample: with guidance one more, without the prompt."""
        return 1 if self.scale == 1 else 2

    def logits(
        self, samples: torch.Tensor, finished: torch.Tensor, columns: slice, rows: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Head outputs of a block, guided if asked.

        Args:
            samples: (active,), rows of the batch that take part.
            finished: (batch,), which rows never take part again.
            columns: of the block in the canvas.
            rows: (active, block), positions that are wanted.
            step: index of the step inside the block.

        Returns:
            (wanted positions, output vocabulary).
        """
        if self.is_whole(columns, step):
            if self.interval != 1:
                self.cache, self.members = DenoisingCache(len(self.model.model.language_model.layers)), samples
            self.whole[samples] += self.views
            hidden = self._whole_pass(samples, columns)
        else:
            hidden = self._live_pass(samples, finished, columns)
        return self._head(hidden.unflatten(0, (self.views, -1))[:, rows])

    def is_whole(self, columns: slice, step: int) -> bool:
        """Whether a step runs whole sequences: the same for all samples, whatever they are batched with.

        Args:
            columns: of the block in the canvas.
            step: index of the step inside the block.

        Returns:
            True if it does.
        """
        if self.interval is None:
            return step == 0 and columns.start == 0
        return step % self.interval == 0

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Head outputs, (..., output vocabulary), guided if asked; `hidden` is (views, ..., hidden)."""
        logits = self.model.lm_head(hidden)[..., : self.model.config.output_vocab_size]
        if self.views == 1:
            return logits[0]
        # Half precision would overflow where conditional and unconditional logits are far apart.
        conditional, unconditional = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return unconditional + self.scale * (conditional - unconditional)

    def _whole_pass(self, samples: torch.Tensor, columns: slice | torch.Tensor) -> torch.Tensor:
        """Hidden states of a block, (views * active, block, hidden), after a pass over whole sequences."""
        everyone = len(samples) == len(self.places)
        embeds = self.inputs.embeds if everyone else self.inputs.embeds[samples]
        embeds = self._with_blind(embeds, self.inputs.blind[samples])
        return self._run(embeds, samples, self.places[samples], self.inputs.slots[samples][:, columns])

    def _live_pass(self, samples: torch.Tensor, finished: torch.Tensor, columns: slice) -> torch.Tensor:
        """The same after a pass over what is live."""
        assert self.cache is not None
        # What is forgotten of others comes again with the whole pass of the next block, if there is one.
        self._forget(samples if self.interval is not None else (~finished).nonzero()[:, 0])
        members = self.members
        positions, wanted = self._live_positions(columns)
        self.cache.look_at(positions.repeat(self.views, 1))
        hidden = self._run_live(positions, wanted)
        if len(samples) == len(members):
            return hidden
        return hidden.unflatten(0, (self.views, -1))[:, torch.isin(members, samples)].flatten(0, 1)

    def _live_positions(self, columns: slice | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is live, (members, live), and where in it the block stands, (members, block)."""
        if self.dual:
            positions = self.inputs.block_positions(columns)[self.members]
            return positions, torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
        assert self.live is not None
        positions = self.live[self.members]
        return positions, torch.searchsorted(positions, self.inputs.block_positions(columns)[self.members])

    def _run_live(self, positions: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """A pass over what is live, (views * members, block, hidden); the cache has been told where it is."""
        embeds = self.inputs.embeds[self.members[:, None], positions]
        embeds = self._with_blind(embeds, self.inputs.blind[self.members].gather(1, positions))
        return self._run(embeds, self.members, self.places[self.members].gather(1, positions), wanted)

    def _with_blind(self, embeds: torch.Tensor, blind: torch.Tensor) -> torch.Tensor:
        """All views, (views * samples, positions, hidden)."""
        if self.views == 1:
            return embeds
        return torch.cat([embeds, torch.where(blind[:, :, None], self.mask_embedding, embeds)])

    def _run(
        self, embeds: torch.Tensor, samples: torch.Tensor, places: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """The model's pass: `embeds` has all views, the others one."""
        mask = None if self.inputs.attention_mask is None else self.inputs.attention_mask[samples]
        return self.model.model(
            inputs_embeds=embeds,
            attention_mask=None if mask is None else mask.repeat(self.views, 1),
            position_ids=places.repeat(self.views, 1),
            past_key_values=self.cache,
            output_positions=wanted.repeat(self.views, 1),
            return_dict=True,
        ).last_hidden_state

    def _forget(self, needed: torch.Tensor) -> None:
        """Drop what is remembered of samples that are done."""
        if len(needed) == len(self.members):
            return
        assert self.cache is not None
        kept = torch.isin(self.members, needed).nonzero()[:, 0]
        self.cache.select(torch.cat([kept + view * len(self.members) for view in range(self.views)]))
        self.members = self.members[kept]
