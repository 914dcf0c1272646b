"""LLaDA-V: a vision tower, a projector and a bidirectional language model that fills in masked tokens.

Paper: arXiv:2505.16933. The language model is LLaDA (arXiv:2502.09992): Llama's layers without the causal mask.
"""

import torch
from torch import nn
from transformers import AutoModel, Cache
from transformers.activations import ACT2FN
from transformers.conversion_mapping import WeightRenaming, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults

from .checkpoint_keys_lladav import OFFICIAL_RENAMINGS
from .configuration_lladav import LladaVConfig
from .diffusion_lladav import CHUNK_ROWS, IGNORE_INDEX, add_mask_noise, chunked_token_loss
from .features_lladav import pack_frames, pack_single_tile, pack_tiles
from .generation_configuration_lladav import LladaVGenerationConfig
from .generation_lladav import LladaVGenerationMixin
from .modeling_outputs_lladav import LladaVMaskedDiffusionOutput, LladaVModelOutput
from .modeling_text_lladav import LladaVPreTrainedModel, LladaVTextModel, positions_from_mask
from .scoring_lladav import LladaVScoringMixin
from .tiling_lladav import TileLayout, tile_layout

# Folders in the official layout load as they are: keys are renamed on the way in.
register_checkpoint_conversion_mapping(
    "lladav", [WeightRenaming(source, target) for source, target in OFFICIAL_RENAMINGS], overwrite=True
)


class LladaVMultiModalProjector(nn.Module):
    """Two linear layers with a GELU between them, from vision width to text width."""

    def __init__(self, config: LladaVConfig) -> None:
        super().__init__()
        vision_size, text_size = config.vision_config.hidden_size, config.text_config.hidden_size
        self.linear_1 = nn.Linear(vision_size, text_size, bias=config.multimodal_projector_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(text_size, text_size, bias=config.multimodal_projector_bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., vision hidden size) features of the tower to (..., text hidden size)."""
        return self.linear_2(self.act(self.linear_1(features)))


@auto_docstring(custom_intro="Vision tower, projector and bidirectional language model without its head.")
class LladaVModel(LladaVPreTrainedModel):
    base_model_prefix = "model"

    def __init__(self, config: LladaVConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LladaVMultiModalProjector(config)
        self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
        self.language_model = LladaVTextModel._from_config(config.text_config)
        self.post_init()
        # SigLIP's towers also name layers of its text half, which FSDP would look for in vain.
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of the language model."""
        self.language_model.set_input_embeddings(value)

    def encode_tiles(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The tower's output before its final norm, which LLaDA-V does not use.

        Args:
            pixel_values: (tiles, 3, side, side).

        Returns:
            (tiles, patches, vision hidden) of the last layer.
        """
        embeddings = self.vision_tower.embeddings(pixel_values.to(self.vision_tower.dtype))
        return self.vision_tower.encoder(inputs_embeds=embeddings).last_hidden_state

    def _see(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithPooling:
        """`encode_tiles`, with every layer's hidden states and attentions where call or configuration ask for them."""
        asked = ("output_hidden_states", "output_attentions")
        states, attentions = (kwargs.get(name, getattr(self.config, name, False)) for name in asked)
        if not states and not attentions:
            return BaseModelOutputWithPooling(last_hidden_state=self.encode_tiles(pixel_values))
        options = {"output_hidden_states": True, "output_attentions": attentions, "return_dict": True}
        outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), **options)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.hidden_states[-1],  # the last layer's: the tower's own output is normed
            hidden_states=outputs.hidden_states if states else None,
            attentions=outputs.attentions,
        )

    def _tile_counts(self, image_sizes: torch.Tensor, given: torch.Tensor | None, tiles: int) -> list[int]:
        """Tiles of each picture: as given, or else all tiled by size, or else one each."""
        if given is not None:
            counts = given.tolist()
        else:
            counts = (
                [self._layout(size).num_tiles for size in image_sizes.tolist()]
                if self.config.image_grid_pinpoints
                else []
            )
            if sum(counts) != tiles:
                counts = [1] * len(image_sizes)
        if sum(counts) != tiles or len(counts) != len(image_sizes):
            raise ValueError(
                f"pixel_values holds {tiles} tiles, but image_sizes has {len(image_sizes)} pictures and "
                f"image_tile_counts={counts}; pass all three as the processor returned them"
            )
        return counts

    def _layout(self, image_size: list[int]) -> TileLayout:
        config = self.config
        return tile_layout(
            tuple(image_size),
            self.config.image_grid_pinpoints,
            config.vision_config.image_size,
            config.patches_per_side,
            config.max_tiles,
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor,
        image_tile_counts: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode pictures into the tokens that stand in for their placeholders.

        Args:
            pixel_values: (tiles of all pictures, 3, side, side).
            image_sizes: (pictures, 2), (height, width) of each original picture in pixels.
            image_tile_counts: (pictures,), tiles of each; one tile means a picture padded to a square.

        Returns:
            `last_hidden_state` is (tiles, patches, vision hidden) of the tower, `pooler_output` a list with
            (tokens, hidden) per picture: base tile, then the unpadded map with a newline after every row. With
            `output_hidden_states` and `output_attentions` also those of the tower's layers.

        Raises:
            ValueError: if the tile counts do not add up.
        """
        counts = self._tile_counts(image_sizes, image_tile_counts, len(pixel_values))
        seen = self._see(pixel_values, **kwargs)
        features = self.multi_modal_projector(seen.last_hidden_state)  # (tiles, patches, hidden)
        newline = self.image_newline.to(features.dtype)
        seen.pooler_output = [
            pack_tiles(tiles, self._layout(size), newline)
            if len(tiles) > 1
            else pack_single_tile(tiles[0], newline if self.config.single_tile_newline else None)
            for tiles, size in zip(features.split(counts), image_sizes.tolist(), strict=True)
        ]
        return seen

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_frame_counts: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode videos, one pooled tile per frame, into tokens.

        Args:
            pixel_values_videos: (frames of all videos, 3, side, side).
            video_frame_counts: (videos,), frames of each; all frames are one video by default.

        Returns:
            `last_hidden_state` is (frames, patches, vision hidden) of the tower, `pooler_output` a list with
            (tokens, hidden) per video; newlines stand where `config.newline_position` puts them. With
            `output_hidden_states` and `output_attentions` also those of the tower's layers.

        Raises:
            ValueError: if the frame counts do not add up.
        """
        frames = len(pixel_values_videos)
        counts = [frames] if video_frame_counts is None else video_frame_counts.tolist()
        if sum(counts) != frames:
            raise ValueError(f"pixel_values_videos holds {frames} frames, but video_frame_counts={counts}")
        seen = self._see(pixel_values_videos, **kwargs)
        features = self.multi_modal_projector(seen.last_hidden_state)  # (frames, patches, hidden)
        newline = self.image_newline.to(features.dtype)
        position = self.config.newline_position
        seen.pooler_output = [pack_frames(video, newline, position) for video in features.split(counts)]
        return seen

    def _place(
        self, embeds: torch.Tensor, where: torch.Tensor, features: list[torch.Tensor], kind: str
    ) -> torch.Tensor:
        """Write the features over the placeholder positions `where` (batch, length), in order."""
        tokens = torch.cat(features).to(embeds.dtype)
        placeholders = int(where.sum())
        if placeholders != len(tokens):
            raise ValueError(
                f"input_ids hold {placeholders} {kind} placeholders, but the {kind}s give {len(tokens)} features "
                f"({[len(item) for item in features]} each); build both with the processor and do not truncate"
            )
        return embeds.masked_scatter(where[..., None].expand_as(embeds), tokens)

    def embed_inputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        image_tile_counts: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_frame_counts: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Embed tokens and put picture and video features in their places.

        Args:
            input_ids: (batch, length) with one placeholder per picture or video token.
            pixel_values: see `get_image_features`.
            image_sizes: see `get_image_features`.
            image_tile_counts: see `get_image_features`.
            pixel_values_videos: see `get_video_features`.
            video_frame_counts: see `get_video_features`.

        Returns:
            (batch, length, hidden) embeddings, and the picture and video features that went in, if any.

        Raises:
            ValueError: if placeholders and features differ in number, or pictures are missing or unexpected.
        """
        is_image, is_video = input_ids == self.config.image_token_id, input_ids == self.config.video_token_id
        embeds = self.get_input_embeddings()(input_ids)
        image_features = video_features = None
        for pixels, where, name in ((pixel_values, is_image, "image"), (pixel_values_videos, is_video, "video")):
            if pixels is None and bool(where.any()):
                raise ValueError(f"input_ids hold {int(where.sum())} {name} placeholders, but no {name} was given")
        if pixel_values is not None:
            if image_sizes is None:
                raise ValueError("pixel_values need image_sizes, (pictures, 2) as (height, width)")
            features = self.get_image_features(pixel_values, image_sizes, image_tile_counts, return_dict=True)
            packed = features.pooler_output
            embeds, image_features = self._place(embeds, is_image, packed, "image"), torch.cat(packed)
        if pixel_values_videos is not None:
            packed = self.get_video_features(pixel_values_videos, video_frame_counts, return_dict=True).pooler_output
            embeds, video_features = self._place(embeds, is_video, packed, "video"), torch.cat(packed)
        return embeds, image_features, video_features

    @merge_with_config_defaults
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        image_tile_counts: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_frame_counts: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        conversation_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LladaVModelOutput:
        r"""
        image_sizes (`torch.LongTensor` of shape `(pictures, 2)`, *optional*):
            (height, width) of each original picture in pixels.
        image_tile_counts (`torch.LongTensor` of shape `(pictures,)`, *optional*):
            Tiles of each picture in `pixel_values`.
        video_frame_counts (`torch.LongTensor` of shape `(videos,)`, *optional*):
            Frames of each video in `pixel_values_videos`.
        conversation_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            Turn that each position belongs to, for the conversation mask.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is not None and not (pixel_values is None and pixel_values_videos is None):
            raise ValueError(
                "pixel_values or pixel_values_videos were given with inputs_embeds, which do not say where they go; "
                "give input_ids, or the embeddings that embed_inputs makes of both"
            )
        image_features = video_features = None
        if inputs_embeds is None:
            inputs_embeds, image_features, video_features = self.embed_inputs(
                input_ids, pixel_values, image_sizes, image_tile_counts, pixel_values_videos, video_frame_counts
            )
        if (
            position_ids is None
            and past_key_values is None
            and attention_mask is not None
            and attention_mask.ndim == 2
        ):
            position_ids = positions_from_mask(attention_mask)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            conversation_ids=conversation_ids,
            return_dict=True,  # whatever the configuration says
            **kwargs,
        )
        return LladaVModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            video_hidden_states=video_features,
        )


@auto_docstring(custom_intro="LLaDA-V with its head: fills in masked tokens, in training and in `generate()`.")
class LladaVForMaskedDiffusion(LladaVPreTrainedModel, LladaVGenerationMixin, LladaVScoringMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    generation_config_class = LladaVGenerationConfig
    # Positions whose logits exist together in the loss.
    loss_chunk_rows = CHUNK_ROWS
    # The loss is a mean over samples, not over tokens: a Trainer must not rescale it by token counts.
    accepts_loss_kwargs = False

    def __init__(self, config: LladaVConfig) -> None:
        super().__init__(config)
        self.model = LladaVModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the language model."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of the language model."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def get_image_features(self, *args: object, **kwargs: object) -> BaseModelOutputWithPooling:
        """Encode pictures, see [`LladaVModel.get_image_features`]."""
        return self.model.get_image_features(*args, **kwargs)

    def get_video_features(self, *args: object, **kwargs: object) -> BaseModelOutputWithPooling:
        """Encode videos, see [`LladaVModel.get_video_features`]."""
        return self.model.get_video_features(*args, **kwargs)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        image_tile_counts: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_frame_counts: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor | None = None,
        conversation_ids: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LladaVMaskedDiffusionOutput:
        r"""
        image_sizes (`torch.LongTensor` of shape `(pictures, 2)`, *optional*):
            (height, width) of each original picture in pixels.
        image_tile_counts (`torch.LongTensor` of shape `(pictures,)`, *optional*):
            Tiles of each picture in `pixel_values`.
        video_frame_counts (`torch.LongTensor` of shape `(videos,)`, *optional*):
            Frames of each video in `pixel_values_videos`.
        labels (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            The answer tokens, -100 elsewhere. Without `loss_weights` the noise is drawn here: `input_ids` are the
            clean tokens, and some labelled ones are hidden (LLaDA, arXiv:2502.09992, algorithm 2). The head is then
            applied to the hidden positions only, and `logits` is None unless `logits_to_keep` asks for some.
        loss_weights (`torch.FloatTensor` of shape `(batch, length)`, *optional*):
            The noise was drawn outside: `input_ids` are already noised, `labels` are -100 where nothing was hidden,
            and loss = sum(loss_weights * cross-entropy) / batch, without any randomness.
        logits_to_keep (`int` or `torch.Tensor`, *optional*):
            Positions the head is applied to: the last n, a 1-D index, or a boolean (batch, length) mask, whose
            logits come packed as (positions, vocabulary). All positions by default.
        conversation_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            Turn that each position belongs to, for the conversation mask.
        generator (`torch.Generator`, *optional*):
            Source of the noise, on the device of `input_ids`.
        """
        if loss_weights is not None and labels is None:
            raise ValueError("loss_weights were given without labels; pass the hidden tokens as labels")
        if labels is not None and loss_weights is None:
            if input_ids is None:
                raise ValueError("noise is drawn on input_ids; with inputs_embeds pass loss_weights as well")
            placeholders = (self.config.image_token_id, self.config.video_token_id)
            noised = add_mask_noise(input_ids, labels, self.config.mask_token_id, placeholders, generator)
            input_ids, labels, loss_weights = noised.input_ids, noised.labels, noised.loss_weights
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            image_tile_counts=image_tile_counts,
            pixel_values_videos=pixel_values_videos,
            video_frame_counts=video_frame_counts,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            conversation_ids=conversation_ids,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # (batch, length, hidden)
        loss = logits = None
        if labels is not None and loss_weights is not None:
            rows = labels != IGNORE_INDEX
            loss = chunked_token_loss(
                hidden_states[rows],  # (positions, hidden)
                self.lm_head,
                labels[rows],
                loss_weights[rows],
                len(labels),
                self.loss_chunk_rows,
            )
        if labels is None or logits_to_keep is not None:
            logits = self.lm_head(_select_positions(hidden_states, logits_to_keep))
        return LladaVMaskedDiffusionOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            video_hidden_states=outputs.video_hidden_states,
        )


def _select_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor | None) -> torch.Tensor:
    if logits_to_keep is None:
        return hidden_states
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return hidden_states[:, logits_to_keep]


__all__ = ["LladaVForMaskedDiffusion", "LladaVModel"]
