"""Chats, pictures and video frames to model inputs."""

import re
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin

from .chat_template_lladav import build_chat_template
from .chat_text_lladav import (
    TOO_DEEP,
    as_batch,
    as_texts,
    check_chats,
    check_continuable,
    escape,
    escape_all,
    escape_chat,
    given_any,
    prepare_tokenizer,
    set_apart,
    split_holes,
    text_with_holes,
)
from .image_processing_lladav import LladaVImageProcessorKwargs, count_image_tokens
from .official_processor_lladav import load_parts
from .tiling_lladav import tile_layout

BESIDE_THE_CHAT = "beside_the_chat"


class LladaVProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: LladaVImageProcessorKwargs
    videos_kwargs: LladaVImageProcessorKwargs
    _defaults = {
        "text_kwargs": {"padding": True, "padding_side": "left", "add_special_tokens": False},
        "images_kwargs": {},
    }


class LladaVProcessor(ProcessorMixin):
    """Builds model inputs from text or chats with pictures and videos.

    Text given to the processor itself is control language: its `<image>` is a placeholder, its `<|eot_id|>` ends a
    message. What stands in the messages of a chat is text: see [`~LladaVProcessor.apply_chat_template`].

    Args:
        image_processor: a [`LladaVImageProcessor`].
        tokenizer: LLaDA's tokenizer; the placeholders are added to it if it lacks them, and it is made to delete the
            noncharacter U+FDD0, which keeps typed control tokens apart from real ones.
        chat_template: Jinja template; the official prompt format by default.
        image_token: placeholder of a picture in text, `<image>` by default.
        video_token: placeholder of a video in text, `<video>` by default.
        mask_token: what a hole consists of, `<|mdm_mask|>` by default; a tokenizer without it cannot infill.
    """

    valid_processor_kwargs = LladaVProcessorKwargs

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        mask_token: str = "<|mdm_mask|>",
    ) -> None:
        self.image_token, self.video_token, self.mask_token = image_token, video_token, mask_token
        if chat_template is None:
            chat_template = build_chat_template()
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.control_tokens()
        token_id = tokenizer.backend_tokenizer.token_to_id
        self.image_token_id, self.video_token_id = token_id(image_token), token_id(video_token)
        self.mask_token_id = token_id(mask_token)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *, vision_config: Any = None, **kwargs: Any) -> Any:
        """Load a processor; for an official checkpoint, which has none, make it from its configuration and tokenizer.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id.
            vision_config: SigLIP configuration of an official checkpoint's vision tower, if its tile size cannot be
                told from the folder: a configuration, its content, or its path. Elsewhere it is not needed.
            **kwargs: those of transformers.

        Returns:
            The processor.

        Raises:
            OfficialCheckpointError: if an official configuration cannot be translated, or the tokenizer has other ids
                than it assumes.
            OSError: if a file is missing or holds something else.
        """
        # `pipeline` hands the model's dtype to every part; a tokenizer would keep it and could not be saved any more.
        kwargs = {name: value for name, value in kwargs.items() if name not in ("dtype", "torch_dtype")}
        parts = load_parts(pretrained_model_name_or_path, vision_config, **kwargs)
        if parts is None:
            try:
                return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
            except (UnicodeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
                # transformers looks up what the files name, and says no more than that it failed.
                text = f"{type(error).__name__}: {error}; are its JSON files whole, and UTF-8?"
                raise OSError(f"the processor of {pretrained_model_name_or_path} cannot be loaded: {text}") from error
        processor = cls.from_args_and_dict(parts, {}, **kwargs)
        processor.tokenizer.chat_template = processor.chat_template  # as it is where a processor was saved
        return processor

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """Text with placeholders, pictures and videos to model inputs.

        Args:
            images: a picture, a flat list (dealt out to the placeholders in order) or one list per sample.
            text: a string or a list of strings, with one placeholder per picture and video.
            videos: a video as a list of frames or an array of four dimensions, the first being frames; a list of
                videos, or one list of videos per sample.
            **kwargs: settings of the tokenizer and the image processor, and `return_tensors`.

        Returns:
            What the model's forward takes.
        """
        # What `apply_chat_template` was given beside the chat; transformers passes it through.
        beside = kwargs.pop(BESIDE_THE_CHAT, {})
        images, videos = beside.get("images", images), beside.get("videos", videos)
        return super().__call__(images=images, text=text, videos=videos, **kwargs)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        *,
        tokenize: bool = False,
        continue_final_message: bool | str = False,
        processor_kwargs: dict[str, Any] | None = None,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Bring a chat, or a batch of chats, to a prompt or to model inputs.

        Control tokens that stand in messages (contents, roles and everything else in them), tools and documents are
        text: `<|eot_id|>` ends no message, `<|mdm_mask|>` is no mask, and decoding gives back what was typed, but for
        U+FDD0 and U+FDD1. In the prompt the former keeps them apart; the tokenizer deletes it.

        `<image>` and `<video>` are text as well, with one exception, for data in which pictures lie beside the chat:
        in contents that are strings, not lists of parts, they are placeholders if the result is a prompt
        (`tokenize=False`), or if the pictures (videos) come along in `processor_kwargs`.

        Args:
            conversation: a list of messages, or a list of such lists.
            chat_template: another template than the processor's.
            tools: for templates that know them.
            documents: for templates that know them.
            tokenize: give model inputs, not the prompt.
            continue_final_message: leave the last message open, for the model to go on with it.
            processor_kwargs: settings of the call that tokenises; `images` and `videos` in it are pictures and videos
                that belong to the placeholders of the chat.
            sanitize_control_tokens: make typed control tokens text. Without it, whoever writes a message can end it,
                write in the name of the system, and mask.
            **kwargs: those of transformers, and template variables such as `image_separator`. The latter are not
                sanitised.

        Returns:
            The prompt, or a list of prompts; with `tokenize` the ids, with `return_dict` all model inputs.

        Raises:
            TypeError: if a chat is no list, or a message no dictionary.
            ValueError: if a role or a content is none, a message to be continued is empty, placeholders and pictures
                do not match, or the template cannot make a prompt of the chat.
        """
        call = dict(processor_kwargs or {})
        conversation = check_chats(conversation)
        if continue_final_message is True:
            check_continuable(conversation)
        if sanitize_control_tokens:
            tokens = self.control_tokens()
            conversation = self._as_text(conversation, tokens, tokenize, {**kwargs, **call})
            tools, documents = escape_all(tools, tokens), escape_all(documents, tokens)
        if tokenize and not kwargs.get("return_assistant_tokens_mask"):  # older transformers count characters
            conversation = set_apart(conversation)
        given = {name: call.pop(name, None) for name in ("images", "videos")}
        if beside := {name: items for name, items in given.items() if given_any(items)}:
            if not tokenize:
                raise ValueError(
                    f"processor_kwargs holds {' and '.join(beside)}, but a prompt has no place for them; pass "
                    "tokenize=True, or give them to the processor together with the prompt"
                )
            call[BESIDE_THE_CHAT] = beside
        kwargs |= {"tokenize": tokenize, "continue_final_message": continue_final_message, "processor_kwargs": call}
        try:
            return super().apply_chat_template(conversation, chat_template, tools=tools, documents=documents, **kwargs)
        except RecursionError as error:
            raise ValueError(TOO_DEEP) from error
        except Exception as error:
            # Jinja's errors have no base among Python's own but Exception, and Jinja is not always there to ask.
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            raise ValueError(f"the chat template cannot make a prompt of this chat: {error}") from error

    def control_tokens(self) -> tuple[str, ...]:
        """All control tokens, which are text where somebody types them.

        Returns:
            Their texts. A tokenizer that was changed since, or another one, is prepared again.
        """
        return prepare_tokenizer(self.tokenizer, (self.image_token, self.video_token), (self.mask_token,))

    def _as_text(self, conversation: Any, tokens: tuple[str, ...], tokenize: bool, given: dict[str, Any]) -> Any:
        """A copy of a chat or a batch of chats in which control tokens are text."""
        kinds = {"images": self.image_token, "videos": self.video_token}
        placeholders = tuple(token for name, token in kinds.items() if not tokenize or given_any(given.get(name)))
        chats, batched = as_batch(conversation)
        plain = [escape_chat(chat, tokens, placeholders) for chat in chats]
        return plain if batched else plain[0]

    def expand_holes(self, text: str) -> str:
        """Turn the holes of a text into mask tokens, and its control tokens into text.

        A single space directly before a hole is dropped: tokens carry their leading space, so that the hole's first
        token brings it. `a [MASK:1] star` has the ids of `a red star` with a mask in the place of ` red`.

        Args:
            text: such as `Because [MASK:20], the answer is [MASK:3].`

        Returns:
            A prompt, in which control tokens that were typed are kept apart as in `apply_chat_template`.

        Raises:
            ValueError: if a hole has no length from 1 on, or the tokenizer has no mask token.
        """
        pieces, tokens = split_holes(text), self.control_tokens()
        if len(pieces) > 1 and self.mask_token_id is None:
            raise ValueError(
                f"the tokenizer has no mask token {self.mask_token!r} for holes; give the processor its mask_token="
            )
        return "".join(self.mask_token * p if isinstance(p, int) else escape(p, tokens) for p in pieces)

    def encode_holes(self, text: str) -> list[int]:
        """The ids of a text with holes.

        Args:
            text: as for `expand_holes`.

        Returns:
            Its ids, nothing around them; each hole is as many mask tokens as it says.

        Raises:
            ValueError: if a hole has no length from 1 on, or the tokenizer has no mask token.
        """
        return self.tokenizer(self.expand_holes(text), add_special_tokens=False)["input_ids"]

    def infilling_inputs(self, conversations: Any, **kwargs: Any) -> Any:
        """Bring a chat with holes in the last assistant message to model inputs.

        Holes are written `[MASK:n]`, n being the number of tokens; see `expand_holes` for the space before them. They
        are filled only in the last message, which is closed; elsewhere `[MASK:n]` is text.

        Args:
            conversations: a chat or a batch of chats, each ending with a message of the assistant, whose content is a
                string or a list of parts of type text.
            **kwargs: of `apply_chat_template`; `sanitize_control_tokens` is about the messages before the last.

        Returns:
            Model inputs as tensors, if `**kwargs` do not ask for something else.

        Raises:
            ValueError: if the last message is not the assistant's, has no hole, or one without a length from 1 on.
        """
        kwargs = {"tokenize": True, "return_dict": True, "return_tensors": "pt", **kwargs}
        if opened := [n for n in ("add_generation_prompt", "continue_final_message") if kwargs.get(n)]:
            raise ValueError(f"{opened[0]}={kwargs[opened[0]]} does not go with a closed last message; leave it out")
        chats, batched = as_batch(conversations)
        texts = [self.expand_holes(text_with_holes(chat, index)) for index, chat in enumerate(chats)]
        if kwargs.pop("sanitize_control_tokens", True):
            given = {**kwargs, **(kwargs.get("processor_kwargs") or {})}
            chats = self._as_text(chats, self.control_tokens(), kwargs["tokenize"], given)
        chats = [[*c[:-1], {**c[-1], "content": text}] for c, text in zip(chats, texts, strict=True)]
        return self.apply_chat_template(chats if batched else chats[0], sanitize_control_tokens=False, **kwargs)

    @property
    def video_processor(self) -> None:
        """Not a part of its own: frames go through the image processor.

        The attribute only has to exist for transformers to hand videos to `_process_videos`.
        """
        return None

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model's forward takes."""
        return [*super().model_input_names, "pixel_values_videos", "video_frame_counts"]

    @property
    def unused_input_names(self) -> list[str]:
        """Names that are only needed to count placeholders."""
        return ["num_image_tokens", "num_video_tokens"]

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Bring text to a list and pictures and videos to one list per sample.

        Args:
            images: a picture, a flat list (dealt out to the placeholders in order) or one list per sample.
            text: a string or a list of strings.
            videos: a video as a list of frames, a list of videos, or one list of videos per sample.
            audio: refused.
            **kwargs: not used here.

        Returns:
            Pictures, text, videos and None.

        Raises:
            ValueError: if audio is given, the text is none, or pictures or videos cannot be dealt out to it.
        """
        if audio is not None:
            raise ValueError("LLaDA-V takes pictures and videos, no audio; leave audio out")
        texts = as_texts(text)
        if images is not None:
            images = self._deal_out(images, texts, self.image_token)
        if videos is not None:
            videos = self._deal_out(_as_videos(videos), texts, self.video_token, depth=2)
        return images, texts, videos, None

    def _deal_out(self, items: Any, texts: list[str] | None, token: str, depth: int = 1) -> list[list[Any]]:
        """One list of pictures (depth 1) or videos (depth 2) per sample; a flat list follows the placeholders."""
        items = list(items) if isinstance(items, list | tuple) else [items]
        if _depth(items) > depth:
            if bare := [index for index, sample in enumerate(items) if not isinstance(sample, list | tuple)]:
                raise ValueError(f"the items for {token} of sample {bare[0]} are no list; give one for each sample")
            return [list(sample) for sample in items]
        if texts is None:
            return [[item] for item in items]
        counts = [sample.count(token) for sample in texts]
        if sum(counts) != len(items):
            raise ValueError(
                f"{len(items)} were given for {sum(counts)} {token} placeholders ({counts} by sample); give one each"
            )
        stream = iter(items)
        return [[next(stream) for _ in range(count)] for count in counts]

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> None:
        """Check that every sample has as many pictures and videos as placeholders.

        Args:
            images: one list of pictures per sample, or None.
            text: list of strings, or None.
            videos: one list of videos per sample, or None.
            audio: not used.
            **kwargs: not used.

        Raises:
            ValueError: naming the sample and both counts.
        """
        if images is None and text is None and videos is None:
            raise ValueError("give text, images or videos; there is nothing to process")
        if text is None:
            return
        for items, token, kind in ((images, self.image_token, "pictures"), (videos, self.video_token, "videos")):
            if items is not None and len(items) != len(text):
                raise ValueError(f"{kind} were given for {len(items)} samples, but there are {len(text)} texts")
            for index, sample in enumerate(text):
                placeholders, given = sample.count(token), 0 if items is None else len(items[index])
                if placeholders != given:
                    raise ValueError(
                        f"sample {index} has {placeholders} {token} placeholders and {given} {kind}; give one each"
                    )

    def _process_images(self, images: list[list[Any]], **kwargs: Any) -> tuple[BatchFeature, list[str]]:
        filled = [sample for sample in images if sample]
        if not filled:
            return {}, []
        features = self.image_processor(filled, **kwargs)
        return features, [self.replace_image_token(features, i) for i in range(len(features["num_image_tokens"]))]

    def _process_videos(self, videos: list[list[Any]], **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
        flat = [video for sample in videos for video in sample]
        if not flat:
            return {}, []
        kwargs.pop("return_tensors", None)  # the base class converts everything at the end
        parts = [self.image_processor.preprocess_video(v, f"video {i + 1}", **kwargs) for i, v in enumerate(flat)]
        features: dict[str, Any] = {}
        for name in ("pixel_values_videos", "video_frame_counts", "num_video_tokens"):
            features[name] = [entry for part in parts for entry in part[name]]
        return features, [self.replace_video_token(features, i) for i in range(len(parts))]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """The placeholder of one picture, repeated once per token of its features."""
        return self.image_token * image_inputs["num_image_tokens"][image_idx]

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        """The placeholder of one video, repeated once per token of its features."""
        return self.video_token * video_inputs["num_video_tokens"][video_idx]

    def _check_special_mm_tokens(self, text: list[str], text_inputs: BatchFeature, modalities: list[str]) -> None:
        for kind, token, token_id in (
            ("picture", self.image_token, self.image_token_id),
            ("video", self.video_token, self.video_token_id),
        ):
            for index, (sample, ids) in enumerate(zip(text, text_inputs["input_ids"], strict=True)):
                kept, needed = list(ids).count(token_id), len(re.findall(re.escape(token), sample))
                if kept != needed:
                    raise ValueError(
                        f"truncation would cut a {kind} of sample {index}: {kept} of its {needed} tokens fit; raise "
                        "max_length or use fewer pictures"
                    )

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs: Any) -> Any:
        """Tokens and tiles of pictures of the given (height, width) sizes, each alone in its sample."""
        if image_sizes is None:
            return MultiModalData()
        geometry = self.image_processor.geometry()
        tiles = [1] * len(image_sizes)
        if geometry.pinpoints:
            tiles = [
                tile_layout(
                    tuple(size), geometry.pinpoints, geometry.tile_size, geometry.patches_per_side, geometry.max_tiles
                ).num_tiles
                for size in image_sizes
            ]
        tokens = [count_image_tokens(tuple(size), n, geometry) for size, n in zip(image_sizes, tiles, strict=True)]
        return MultiModalData(num_image_tokens=tokens, num_image_patches=tiles)


def _depth(items: Any) -> int:
    depth = 0
    while isinstance(items, list | tuple):
        depth += 1
        items = next((item for item in items if not (isinstance(item, list | tuple) and not item)), None)
    return depth


def _as_videos(videos: Any) -> list[Any]:
    """Bring one video, given as a list of frames, to a list of videos, and videos that are arrays to lists."""
    videos = _as_frames(videos)
    return [videos] if _depth(videos) == 1 else videos


def _as_frames(item: Any) -> Any:
    if isinstance(item, list | tuple):
        return [_as_frames(part) for part in item]
    return list(item) if getattr(item, "ndim", None) == 4 else item


__all__ = ["LladaVProcessor"]
