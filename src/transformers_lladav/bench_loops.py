"""What the product is compared with: the official loop as it is, and an autoregressive model of the same size.

Kept simple. The first does what the official implementation of LLaDA-V (arXiv:2505.16933) does in every step, its
waste included: logits of all positions in several precisions, a mask of zeros over the whole square, masks found by
comparing embeddings, candidates embedded everywhere, and a look at every position for a stop.
"""

from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM


@torch.no_grad()
def official_loop(
    model: Any, input_ids: torch.Tensor, max_new_tokens: int, block_length: int, max_denoising_steps: int
) -> torch.Tensor:
    """Answer one prompt at temperature 0 as the official code does, without a cache.

    Args:
        model: the [`LladaVForMaskedDiffusion`].
        input_ids: (1, prompt).
        max_new_tokens: length of the answer; a multiple of `block_length`.
        block_length: tokens denoised together.
        max_denoising_steps: over all blocks; a multiple of their number.

    Returns:
        (answer,) tokens, those behind a stop included.

    Raises:
        ValueError: for more than one prompt.
    """
    if len(input_ids) != 1:
        raise ValueError(f"{len(input_ids)} prompts were given; the official code answers one at a time")
    config, device = model.config, input_ids.device
    embed, mask_id = model.get_input_embeddings(), config.mask_token_id
    start, length = input_ids.shape[1], input_ids.shape[1] + max_new_tokens
    tokens = torch.cat([input_ids, input_ids.new_full((1, max_new_tokens), mask_id)], dim=1)
    embeds = embed(tokens)
    mask_embedding = embed(input_ids.new_tensor([mask_id]))
    attention_mask = torch.zeros(1, 1, length, length, dtype=embeds.dtype, device=device)
    stops = set(model.generation_config.stop_token_ids)
    suppressed = [*config.suppressed_token_ids, *range(config.output_vocab_size, config.text_config.vocab_size)]
    blocks = max_new_tokens // block_length
    steps, stop_at = max_denoising_steps // blocks, length
    for block in range(blocks):
        begin, end = start + block * block_length, start + (block + 1) * block_length
        count, rest = divmod(block_length, steps)
        for step in range(steps):
            masked = (embeds == mask_embedding).all(dim=2)  # (1, length)
            hidden = model.model(inputs_embeds=embeds, attention_mask=attention_mask).last_hidden_state
            logits = model.lm_head(hidden).float()
            logits[:, :, suppressed] = -torch.inf
            candidates = logits.to(torch.float64).argmax(dim=2)
            probabilities = F.softmax(logits.to(torch.float64), dim=2)
            confidence = probabilities.gather(2, candidates[:, :, None])[:, :, 0]
            confidence[:, end:] = -torch.inf
            confidence[:, stop_at:] = -torch.inf
            confidence = torch.where(masked, confidence, -torch.inf)
            confidence[:, :begin] = -torch.inf
            candidate_embeds = embed(candidates)
            chosen = confidence[0].topk(count + (step < rest)).indices
            chosen = chosen[confidence[0, chosen] > -torch.inf]
            embeds[0, chosen] = candidate_embeds[0, chosen]
            tokens[0, chosen] = candidates[0, chosen]
            stop_at = next((place for place in range(start, length) if int(tokens[0, place]) in stops), length)
            if not bool((tokens[0, start:stop_at] == mask_id).any()):
                return tokens[0, start:]
    return tokens[0, start:]


def autoregressive_model(config: Any, device: str, dtype: torch.dtype) -> Any:
    """A Llama of the same sizes, with random weights.

    Args:
        config: of the language model.
        device: where it is made.
        dtype: of its weights.

    Returns:
        The model.
    """
    sizes = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "max_position_embeddings",
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM._from_config(
            LlamaConfig(**{name: getattr(config, name) for name in sizes}), dtype=dtype
        )
    return model.eval()


@torch.no_grad()
def write_autoregressively(model: Any, input_ids: torch.Tensor, max_new_tokens: int, **options: Any) -> torch.Tensor:
    """Write tokens one by one with transformers' own `generate` and its cache.

    Args:
        model: from `autoregressive_model`.
        input_ids: (batch, prompt).
        max_new_tokens: written in any case.
        **options: of `generate`.

    Returns:
        (batch, max_new_tokens) tokens.
    """
    mask = torch.ones_like(input_ids)
    lengths = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens, "do_sample": False}
    output = model.generate(input_ids, attention_mask=mask, pad_token_id=0, eos_token_id=None, **lengths, **options)
    return output[:, input_ids.shape[1] :]
