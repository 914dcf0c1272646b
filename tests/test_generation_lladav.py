"""`generate()` follows the official runs step by step, batches change nothing, and misfits are refused."""

import re

import pytest
import torch
from transformers import GenerationConfig, TextDiffusionStreamer
from transformers.generation.streamers import BaseStreamer

import parity
from transformers_lladav import LladaVGenerationConfig, LladaVGenerationOutput

PROMPTS = parity.by_id("prompts", "prompts")
CASES = parity.by_id("generate", "cases")
MASKED_PROMPTS = ["mask_token_in_prompt", "mask_token_in_prompt_blocks"]
COMPARED = [name for name, case in CASES.items() if case["numerically_safe"] and name not in MASKED_PROMPTS]


def find(answer, stop):
    starts = [start for start in range(len(answer) - len(stop) + 1) if answer[start : start + len(stop)] == stop]
    return starts[0] if starts else len(answer)


def official_run(model, processor, case, **options):
    """Run a case as the official code was called, and collect its steps."""
    args, steps = case["args"], []
    inputs = parity.model_inputs(processor, PROMPTS[case["prompt"]])
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
    output = model.generate(
        **inputs,
        steps=args["steps"],
        gen_length=args["gen_length"],
        block_length=args["block_length"],
        temperature=args["temperature"],
        cfg_scale=args["cfg_scale"],
        remasking=args["remasking"],
        generation_suffix=args["generation_suffix"],
        stopping_criteria=args["stopping_criteria"],
        tokenizer=processor.tokenizer,
        eos_token_id=None,
        official_draws=True,
        callback_on_step_end=steps.append,
        **options,
    )
    return inputs.input_ids, output, steps


def compare_step(name, number, case, before, step):
    """Compare which positions a step wrote, and count candidates and tokens that differ."""
    expected = case["trace"][number]
    width = case["args"]["block_length"]
    start = expected["block"] * width
    label = f"{name}, step {expected['block']}.{expected['step']}"
    committed = (start + step.committed[0].nonzero()[:, 0]).tolist()
    arbitrary = {place for at_step, places in case["minus_inf_picks"] if at_step == number for place in places}
    assert committed == [place for place in expected["selected"] if place not in arbitrary], label
    # Behind a stop nothing competes, and candidates are not worked out.
    stop = min([find(before, sequence) for sequence in case["stop_ids"]], default=len(before))
    compared = [at for at in range(start, start + width) if before[at] == parity.MASK and at < stop]
    ours = [int(step.candidates[0, at - start]) for at in compared]
    differing = sum(a != expected["candidates"][at] for a, at in zip(ours, compared, strict=True))
    tokens = step.tokens[0].tolist()
    differing += sum(a != b for a, b in zip(tokens, expected["tokens"], strict=True))
    return differing


@pytest.mark.parametrize("name", COMPARED)
def test_every_step_is_the_official_one(name, model, processor, configured, parity_report):
    case = CASES[name]
    settings = parity.GEOMETRY.get(case["prompt"], {})
    with configured(**{key: value for key, value in settings.items() if key in parity.MODEL_SETTINGS}):
        prompt, output, steps = official_run(model, processor, case)
    assert prompt.shape[1] == case["prompt_embeds_length"]
    parity_report.check("generate: number of steps", name, abs(len(steps) - len(case["trace"])), parity.EXACT)
    first, width = case["trace"][0], case["args"]["block_length"]
    parity_report.close(
        "generate: first confidence",
        name,
        steps[0].confidence[0],
        torch.tensor(first["confidence"][:width], dtype=torch.float64),
        parity.CONFIDENCE,
    )
    before, differing = [parity.MASK] * case["args"]["gen_length"], 0
    for number, (expected, step) in enumerate(zip(case["trace"], steps, strict=True)):
        assert (step.block, step.step) == (expected["block"], expected["step"])
        differing += compare_step(name, number, case, before, step)
        before = expected["tokens"]
    parity_report.check("generate: tokens and candidates", name, differing, parity.EXACT)
    assert torch.equal(output[:, : prompt.shape[1]], prompt)
    answer = output[0, prompt.shape[1] :].tolist()
    parity_report.same("generate: answers", name, answer, case["output_ids"])


@pytest.mark.parametrize("name", ["full_one_block", "image", "two_images", "video_grid", "image_cfg"])
def test_another_attention_kernel_gives_the_same_answers(name, model, processor, kernels, parity_report):
    kernels({"text_config": "eager", "vision_config": "sdpa"})
    prompt, output, _ = official_run(model, processor, CASES[name])
    answer = output[0, prompt.shape[1] :].tolist()
    parity_report.same("generate: answers, other kernels", name, answer, CASES[name]["output_ids"])


@pytest.mark.parametrize("name", MASKED_PROMPTS)
def test_mask_tokens_in_the_prompt_stay_where_the_official_code_fills_them(name, model, processor):
    case = CASES[name]
    assert case["prompt_positions_written"]
    prompt, output, steps = official_run(model, processor, case)
    holes = (prompt[0] == parity.MASK).nonzero()[:, 0].tolist()
    assert len(holes) == 2
    assert torch.equal(output[:, : prompt.shape[1]], prompt)
    assert len(steps) == case["args"]["steps"]
    assert (output[0, prompt.shape[1] :] != parity.MASK).all()
    # The official code's first step may take holes; what it takes of the answer is what is taken here first.
    answered = {place for place in case["trace"][0]["selected"] if place >= 0}
    assert answered
    assert answered <= set(steps[0].committed[0].nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    "options",
    [
        {"max_denoising_steps": 4},
        {"block_length": 4, "max_denoising_steps": 4},
        {"guidance_scale": 2.0, "max_denoising_steps": 2},
        {"suffix_ids": torch.tensor([362, 71, 307]), "max_denoising_steps": 2},
        {"guidance_scale": 1.5, "suffix_ids": torch.tensor([362, 71]), "block_length": 4, "max_denoising_steps": 2},
    ],
    ids=["plain", "blocks", "guidance", "suffix", "guidance, suffix and blocks"],
)
def test_a_batch_of_mixed_samples_gives_the_answers_of_each_alone(options, mixed, model):
    alone, batch = mixed
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, **options}
    together = model.generate(**batch, **options)
    suffix = options.get("suffix_ids", torch.tensor([], dtype=torch.long))
    width = batch.input_ids.shape[1]
    for index, inputs in enumerate(alone):
        single = model.generate(**inputs, **options)
        assert together.answers[index].tolist() == single.answers[0].tolist()
        assert int(together.denoising_steps[index]) == int(single.denoising_steps[0])
        assert bool(together.stopped[index]) == bool(single.stopped[0])
        row = together.sequences[index]
        assert torch.equal(row[:width], batch.input_ids[index])
        end = width + len(single.answers[0])
        assert torch.equal(row[width:end], single.answers[0])
        assert torch.equal(row[end : end + len(suffix)], suffix)
        assert (row[end + len(suffix) :] == parity.PAD).all()


def test_a_right_padded_prompt_gives_the_answer_of_a_left_padded_one(model, processor):
    texts = ["Hi", "Tell me a long story about prime numbers, please."]
    answers = [
        model.generate(
            **processor(text=texts, padding_side=side, return_tensors="pt"),
            max_new_tokens=8,
            return_dict_in_generate=True,
        ).answers
        for side in ("left", "right")
    ]
    assert [row.tolist() for row in answers[0]] == [row.tolist() for row in answers[1]]


@pytest.fixture
def hello(processor):
    """The shortest official prompt."""
    return parity.model_inputs(processor, PROMPTS["text_short"])


def test_guidance_scale_one_is_no_guidance_and_cfg_scale_zero_is_the_same(model, hello):
    plain = model.generate(**hello, max_new_tokens=8)
    assert torch.equal(model.generate(**hello, max_new_tokens=8, guidance_scale=1), plain)
    assert torch.equal(model.generate(**hello, max_new_tokens=8, cfg_scale=0.0), plain)
    guided = model.generate(**hello, max_new_tokens=8, cfg_scale=3.0)
    assert torch.equal(guided, model.generate(**hello, max_new_tokens=8, guidance_scale=4.0))
    assert not torch.equal(guided, plain)


def test_suppressed_tokens_are_never_written_though_the_model_prefers_them(model, processor):
    suppressed = torch.tensor(model.config.suppressed_token_ids)
    assert suppressed.tolist() == [126081, 126080, 126346, 126347]
    inputs = parity.model_inputs(processor, PROMPTS["text_only"])
    whole = torch.cat([inputs.input_ids, torch.full((1, 16), parity.MASK)], dim=1)
    preferred = model(whole, logits_to_keep=16).logits[0].argmax(dim=1)
    assert torch.isin(preferred, suppressed).nonzero()[:, 0].tolist() == [2, 11, 15]
    written = model.generate(**inputs, max_new_tokens=16, max_denoising_steps=1, eos_token_id=None)[0, -16:]
    assert not torch.isin(written, suppressed).any()


def test_ids_beyond_the_output_vocabulary_are_never_written(model, hello, configured):
    free = model.generate(**hello, max_new_tokens=8, max_denoising_steps=1, eos_token_id=None)[0, -8:]
    # The vocabulary ends before the special tokens: the largest ordinary token of the answer is the first one out.
    limit = int(free[free < min(model.config.suppressed_token_ids)].max())
    with configured(output_vocab_size=limit):
        cut = model.generate(**hello, max_new_tokens=8, max_denoising_steps=1, eos_token_id=None)[0, -8:]
    assert int(cut.max()) < limit
    assert torch.equal(cut[free < limit], free[free < limit])


def stopped_run(model, processor, **options):
    """The official run that stops at `<|eot_id|>` in its first block of four."""
    case = CASES["stop_blocks"]
    inputs = parity.model_inputs(processor, PROMPTS[case["prompt"]])
    options = {"max_new_tokens": 32, "block_length": 8, "return_dict_in_generate": True, **options}
    return case, model.generate(**inputs, **options)


def test_the_default_stop_is_the_end_of_turn_token(model, processor):
    case, output = stopped_run(model, processor)
    assert output.answers[0].tolist() == case["output_ids"]
    assert bool(output.stopped[0])


def test_forward_passes_are_counted_and_the_stop_counts_as_a_token(model, processor):
    case, output = stopped_run(model, processor)
    steps, length = len(case["trace"]), len(case["output_ids"])
    assert output.denoising_steps.tolist() == [steps]
    assert output.tokens_per_forward.tolist() == pytest.approx([(length + 1) / steps])
    _, full = stopped_run(model, processor, eos_token_id=None, max_denoising_steps=16)
    assert full.denoising_steps.tolist() == [16]
    assert full.tokens_per_forward.tolist() == [2.0]
    assert full.stopped.tolist() == [False]
    _, guided = stopped_run(model, processor, eos_token_id=None, max_denoising_steps=16, guidance_scale=2.0)
    assert guided.tokens_per_forward.tolist() == [1.0]


def test_the_history_holds_the_canvas_after_every_step(model, processor):
    case, output = stopped_run(model, processor, output_history=True)
    assert isinstance(output, LladaVGenerationOutput)
    assert [row[0].tolist() for row in output.history] == [entry["tokens"] for entry in case["trace"]]
    _, without = stopped_run(model, processor)
    assert without.history is None


def test_a_suffix_as_text_equals_the_suffix_as_ids(model, hello, tokenizer):
    ids = torch.tensor(tokenizer(" Thanks.", add_special_tokens=False).input_ids)
    as_text = model.generate(**hello, max_new_tokens=4, generation_suffix=" Thanks.", tokenizer=tokenizer)
    for suffix in (ids, ids[None]):
        assert torch.equal(model.generate(**hello, max_new_tokens=4, suffix_ids=suffix), as_text)
    assert as_text[0, -len(ids) :].tolist() == ids.tolist()


def test_a_stop_string_ends_the_answer_before_it(model, hello, tokenizer):
    free = model.generate(**hello, max_new_tokens=8, eos_token_id=None)[0, -8:]
    word = tokenizer.decode(free[3:4])
    assert tokenizer(word, add_special_tokens=False).input_ids == [int(free[3])]
    output = model.generate(
        **hello,
        max_new_tokens=8,
        eos_token_id=None,
        stop_strings=word,
        tokenizer=tokenizer,
        return_dict_in_generate=True,
    )
    assert bool(output.stopped[0])
    assert int(free[3]) not in output.answers[0].tolist()
    assert len(output.answers[0]) <= 3


class Recorder(BaseStreamer):
    """Notes what it gets, in order."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append(("put", value.clone()))

    def put_draft(self, value):
        self.calls.append(("draft", value.clone()))

    def end(self):
        self.calls.append(("end", None))


def test_a_streamer_gets_prompt_drafts_blocks_and_the_end(model, hello):
    recorder = Recorder()
    output = model.generate(
        **hello, max_new_tokens=8, block_length=4, max_denoising_steps=4, eos_token_id=None, streamer=recorder
    )
    kinds = [kind for kind, _ in recorder.calls]
    assert kinds == ["put", "draft", "draft", "put", "draft", "draft", "put", "end"]
    confirmed = [value for kind, value in recorder.calls if kind == "put"]
    assert all(value.ndim == 1 for value in confirmed)
    assert torch.equal(torch.cat(confirmed), output[0])
    drafts = [value for kind, value in recorder.calls if kind == "draft"]
    assert [int((value == parity.MASK).sum()) for value in drafts] == [2, 0, 2, 0]
    assert torch.equal(drafts[1], confirmed[1])


def test_a_streamer_sees_nothing_from_a_stop_on(model, processor):
    recorder = Recorder()
    case, _ = stopped_run(model, processor, streamer=recorder)
    confirmed = [value for kind, value in recorder.calls if kind == "put"]
    assert torch.cat(confirmed[1:]).tolist() == case["output_ids"]
    assert recorder.calls[-1][0] == "end"


def test_a_streamer_without_drafts_gets_blocks_only(model, hello):
    class Blocks(BaseStreamer):
        put_draft = None
        lengths, ended = (), False

        def put(self, value):
            self.lengths += (len(value),)

        def end(self):
            self.ended = True

    del Blocks.put_draft
    blocks = Blocks()
    model.generate(**hello, max_new_tokens=8, block_length=4, eos_token_id=None, streamer=blocks)
    assert blocks.lengths == (72, 4, 4)
    assert blocks.ended


def test_the_text_diffusion_streamer_prints_the_answer(model, hello, tokenizer, capsys):
    streamer = TextDiffusionStreamer(tokenizer, skip_prompt=True)
    output = model.generate(**hello, max_new_tokens=8, block_length=4, eos_token_id=None, streamer=streamer)
    printed = capsys.readouterr().out
    drafts = re.compile(r"\x1b7\x1b\[33m.*?\x1b\[0m(\x1b8\x1b\[J)?", re.DOTALL)
    assert len(drafts.findall(printed)) == 8
    assert drafts.sub("", printed).strip("\n") == tokenizer.decode(output[0, -8:]).strip("\n")


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, {"remasking": "random"}, {"temperature": 0.5, "remasking": "random"}]
)
def test_a_sample_with_its_own_generator_is_the_same_alone_and_in_a_batch(options, model, processor):
    texts = ["Hi", "Tell me a story.", "Name three primes, please."]
    options = {"max_new_tokens": 6, "eos_token_id": None, "return_dict_in_generate": True, **options}
    together = model.generate(
        **processor(text=texts, return_tensors="pt"), generator=generators(1, 2, 3), **options
    ).answers
    for index, text in enumerate(texts):
        inputs = processor(text=text, return_tensors="pt")
        (alone,) = model.generate(**inputs, generator=generators(index + 1), **options).answers
        assert together[index].tolist() == alone.tolist()
    again = model.generate(**processor(text=texts, return_tensors="pt"), generator=generators(4, 5, 6), **options)
    assert [row.tolist() for row in again.answers] != [row.tolist() for row in together]


def test_one_generator_or_the_global_seed_makes_a_run_repeatable(model, hello):
    options = {"max_new_tokens": 6, "temperature": 1.0, "eos_token_id": None}
    one, two, other = (model.generate(**hello, generator=generators(seed)[0], **options) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append(model.generate(**hello, **options))
    assert torch.equal(*runs)


def test_without_randomness_the_seed_does_not_matter(model, hello):
    runs = [model.generate(**hello, max_new_tokens=6, generator=generators(seed)[0]) for seed in (1, 2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temprature": 1.0}, TypeError, "generate() does not take 'temprature'; did you mean 'temperature'?"),
        ({"num_beams": 2}, TypeError, "generate() does not take 'num_beams': a denoising loop has no beams"),
        ({"do_sample": True}, TypeError, "generate() does not take 'do_sample': sampling is on when temperature > 0"),
        ({"max_length": 9}, TypeError, "generate() does not take 'max_length': give max_new_tokens"),
        ({"stop": "x"}, TypeError, "generate() does not take 'stop'"),
        ({"temperature": -1}, ValueError, "temperature=-1 must be a number of at least 0"),
        ({"remasking": "entropic"}, ValueError, "remasking='entropic' is not known"),
        ({"max_new_tokens": 9, "block_length": 4}, ValueError, "max_new_tokens=9 is not a multiple of block_length=4"),
        ({"gen_length": 8, "steps": 16}, ValueError, "max_denoising_steps=16 is more than max_new_tokens=8"),
        ({"steps": 8, "max_denoising_steps": 4}, ValueError, "steps=8 and max_denoising_steps=4 disagree"),
        (
            {"max_new_tokens": 16384},
            ValueError,
            "the prompt has 72 tokens and the answer 16384, but the model has 16384 positions",
        ),
        ({"stop_strings": ["a"]}, ValueError, "stop_strings=['a'] are text: pass tokenizer=processor.tokenizer"),
        ({"generation_suffix": "a"}, ValueError, "generation_suffix is text: pass tokenizer=processor.tokenizer"),
        (
            {"generation_suffix": "a", "suffix_ids": torch.tensor([1])},
            ValueError,
            "suffix_ids and generation_suffix were both given",
        ),
        ({"suffix_ids": torch.ones(3, 2).long()}, ValueError, "suffix_ids has 3 rows for a batch of 1"),
        (
            {"suffix_ids": 5},
            ValueError,
            "suffix_ids has shape () and dtype torch.int64; give (suffix,) or",
        ),
        ({"suffix_ids": torch.ones(1, 1, 1).long()}, ValueError, "suffix_ids has shape (1, 1, 1)"),
        ({"suffix_ids": [1.5]}, ValueError, "suffix_ids has shape (1,) and dtype torch.float32; give"),
        ({"suffix_ids": [-1]}, ValueError, "suffix_ids hold token -1, but the model has tokens 0 to 126463"),
        ({"suffix_ids": [126464]}, ValueError, "suffix_ids hold token 126464, but the model has tokens 0 to 126463"),
        ({"cfg_scale": "2"}, ValueError, "cfg_scale='2' must be a number"),
        (
            {"temperature": 1.0, "generator": 3},
            TypeError,
            "generator is a int; pass a torch.Generator, or a list of one per sample",
        ),
        ({"attention_mask": torch.ones(1, 3)}, ValueError, "attention_mask has shape (1, 3) and input_ids (1, 72)"),
        (
            {"temperature": 1.0, "generator": [torch.Generator(), torch.Generator()]},
            ValueError,
            "generator has 2 entries for a batch of 1; pass one per sample",
        ),
    ],
)
def test_arguments_that_break_a_rule_are_refused(options, error, message, model, hello):
    length = {} if "gen_length" in options else {"max_new_tokens": 8}
    with pytest.raises(error, match=re.escape(message)):
        model.generate(**{**hello, **length, **options})


def test_a_prompt_must_be_a_batch(model):
    for prompt, given in (
        (None, "NoneType"),
        (torch.tensor([1, 2]), r"a torch.int64 tensor of shape \(2,\)"),
        (torch.tensor([[1.0]]), r"a torch.float32 tensor of shape \(1, 1\)"),
        ([[1, 2], [3]], "list"),
        (torch.ones(1, 2).bool(), r"a torch.bool tensor of shape \(1, 2\)"),
        (torch.zeros(0, 3).long(), r"a torch.int64 tensor of shape \(0, 3\)"),
    ):
        with pytest.raises(
            ValueError, match=rf"input_ids must be given as \(batch, prompt\) whole numbers, not {given}"
        ):
            model.generate(prompt)


@pytest.mark.parametrize("token", [-1, 126464])
def test_a_token_that_the_model_does_not_have_is_refused_by_its_id(token, model):
    with pytest.raises(ValueError, match=f"input_ids hold token {token}, but the model has tokens 0 to 126463"):
        model.generate(torch.tensor([[5, token]]), max_new_tokens=4)


def test_official_draws_need_a_batch_of_one(model, processor):
    inputs = processor(text=["a", "b"], return_tensors="pt")
    with pytest.raises(ValueError, match="official_draws needs batch size 1, not 2"):
        model.generate(**inputs, max_new_tokens=4, temperature=1.0, official_draws=True)


def test_what_pipelines_pass_along_is_tolerated(model, hello):
    expected = model.generate(**hello, max_new_tokens=4)
    got = model.generate(**hello, max_new_tokens=4, batch_num_images=[0], use_cache=True)
    assert torch.equal(got, expected)


def test_settings_come_from_a_configuration_and_arguments_win(model, hello):
    expected = model.generate(**hello, max_new_tokens=8, max_denoising_steps=2, eos_token_id=None)
    config = LladaVGenerationConfig(max_new_tokens=8, max_denoising_steps=4)
    got = model.generate(**hello, generation_config=config, steps=2, eos_token_id=None)
    assert torch.equal(got, expected)
    assert config.max_denoising_steps == 4


def test_the_models_own_settings_are_not_changed_by_a_call(model, hello):
    before = model.generation_config.to_dict()
    model.generate(**hello, max_new_tokens=4, temperature=1.0, generator=generators(0)[0])
    assert model.generation_config.to_dict() == before
    assert isinstance(model.generation_config, LladaVGenerationConfig)


def test_a_plain_generation_config_is_translated_where_it_says_nothing_else(model, hello):
    expected = model.generate(**hello, max_new_tokens=8, eos_token_id=None)
    got = model.generate(**hello, generation_config=GenerationConfig(max_new_tokens=8), eos_token_id=None)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True}, "does not take 'do_sample': sampling is on when temperature > 0"),
        ({"num_beams": 4}, "does not take 'num_beams': a denoising loop has no beams"),
        ({"max_length": 50}, "does not take 'max_length': give max_new_tokens"),
        ({"typical_p": 0.5}, "does not take 'typical_p'"),
    ],
)
def test_a_plain_generation_config_the_loop_cannot_honour_is_refused(settings, message, model, hello):
    with pytest.raises(ValueError, match=message):
        model.generate(**hello, generation_config=GenerationConfig(**settings))


def test_the_callback_sees_only_samples_that_still_run(model, processor):
    texts = [parity.chat(PROMPTS[name]) for name in ("text_short", "text_only")]
    prompts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in texts]
    inputs, steps = processor(text=prompts, return_tensors="pt"), []
    output = model.generate(
        **inputs,
        max_new_tokens=32,
        block_length=8,
        callback_on_step_end=steps.append,
        return_dict_in_generate=True,
    )
    taken = [sum(sample in step.samples.tolist() for step in steps) for sample in (0, 1)]
    assert taken == output.denoising_steps.tolist()
    assert len(set(taken)) == 2
    assert len(steps) == max(taken)
    for step in steps:
        assert step.committed.shape == step.candidates.shape == step.confidence.shape == (len(step.samples), 8)
        written = step.tokens[step.samples, step.block * 8 : step.block * 8 + 8][step.committed]
        assert torch.equal(written, step.candidates[step.committed])
