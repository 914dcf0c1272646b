"""The loop of constant shapes writes the tokens of the ordinary one, in one graph, and seldom waits for the device."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig
from transformers.generation import MaxTimeCriteria

import parity
from test_forward_passes_lladav import CACHED, HOLES, SHORT
from test_generation_lladav import CASES, COMPARED, Recorder, official_run
from transformers_lladav import ConfidenceThreshold, LladaVGenerationConfig
from transformers_lladav.static_loop_lladav import STEPS_PER_SYNC, StaticLoop, StaticPasses

STATIC = {"cache_implementation": "static"}
OFFICIAL = [
    name
    for name in COMPARED
    if not CASES[name]["args"]["temperature"]
    and CASES[name]["args"]["remasking"] != "random"
    and CASES[name]["args"]["gen_length"] <= 64  # the longest run takes a quarter of a minute and shows nothing new
]
SETTINGS = {
    **{name: settings for name, settings in CACHED.items() if "temperature" not in settings},
    "exact": {"block_length": 4},
    "factor": {"prompt_refresh_interval": 2, "factor": 1.05},
    "entropy": {"entropy_bound": 2.0, "block_length": 4},
    "margin": {"prompt_refresh_interval": 3, "remasking": "margin"},
    "stable": {"stability_threshold": 1, "prompt_refresh_interval": 4},
    "confident": {"confidence_threshold": 4.5, "block_length": 4},
}
WHOLE_OUTPUT = {"return_dict_in_generate": True, "output_scores": True}


def assert_same(static, ordinary):
    assert torch.equal(static.sequences, ordinary.sequences)
    assert [answer.tolist() for answer in static.answers] == [answer.tolist() for answer in ordinary.answers]
    for name in ("denoising_steps", "whole_forwards", "tokens_per_forward", "stopped"):
        assert torch.equal(getattr(static, name), getattr(ordinary, name)), name
    assert static.finish_reasons == ordinary.finish_reasons
    torch.testing.assert_close(static.scores, ordinary.scores, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.fixture
def few_looks(monkeypatch):
    """As on a GPU, where the host looks after several steps."""
    begin = StaticLoop.__init__

    def init(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.steps_per_sync = STEPS_PER_SYNC

    monkeypatch.setattr(StaticLoop, "__init__", init)


# The same tokens


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_runs(name, model, processor, configured, parity_report):
    case = CASES[name]
    settings = parity.GEOMETRY.get(case["prompt"], {})
    with configured(**{key: value for key, value in settings.items() if key in parity.MODEL_SETTINGS}):
        prompt, output, steps = official_run(model, processor, case, **STATIC)
    written = [
        sum(token != parity.MASK for token in expected["tokens"]) - sum(token != parity.MASK for token in before)
        for before, expected in zip(
            [[parity.MASK] * case["args"]["gen_length"], *(step["tokens"] for step in case["trace"])], case["trace"],
            strict=False,
        )
    ]  # fmt: skip
    assert [int(step.committed.sum()) for step in steps] == written
    parity_report.same(
        "generate: answers, static shapes", name, output[0, prompt.shape[1] :].tolist(), case["output_ids"]
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mixed_batch(name, mixed, model, few_looks):
    _, batch = mixed
    options = {"max_new_tokens": 8, **WHOLE_OUTPUT, **SETTINGS[name]}
    assert_same(model.generate(**batch, **options, **STATIC), model.generate(**batch, **options))


@pytest.mark.parametrize("options", [{}, {"use_cache": "dual", "block_length": 2}, {"guidance_scale": 1.5}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_holes(options, side, model, processor, few_looks):
    options = {"infill": True, "prompt_refresh_interval": 2, **WHOLE_OUTPUT, **options}
    batch = processor.infilling_inputs([HOLES, SHORT], return_tensors="pt", padding_side=side)
    assert_same(model.generate(**batch, **options, **STATIC), model.generate(**batch, **options))


def test_two_hundred_random_prompts(tiny_model):
    model = tiny_model()
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        width = int(torch.randint(3, 30, (), generator=generator))
        prompts = torch.randint(4, 60, (5, width), generator=generator)
        options = {"max_new_tokens": 8, "block_length": 4, "max_denoising_steps": 4, **WHOLE_OUTPUT}
        assert_same(model.generate(prompts, **options, **STATIC), model.generate(prompts, **options))


def test_criteria_end_samples_between_blocks(mixed, model, few_looks):
    """What they end is not taken up again."""
    _, batch = mixed
    width = batch.input_ids.shape[1]
    options = {"max_new_tokens": 12, "block_length": 4, "eos_token_id": [], **WHOLE_OUTPUT}
    options["stopping_criteria"] = [lambda ids, _: ids.shape[1] < width + 4]  # prompts with padding are shorter
    ordinary = model.generate(**batch, **options)
    assert sorted(set(ordinary.finish_reasons)) == ["length", "stopping_criteria"]
    assert_same(model.generate(**batch, **options, **STATIC), ordinary)


# What is seen on the way


def test_history_and_callback_see_every_step(mixed, model, few_looks):
    _, batch = mixed
    runs = []
    for options in (STATIC, {}):
        steps = []
        options = {**options, "max_new_tokens": 8, "threshold": 0.12, "output_history": True}
        found = model.generate(**batch, return_dict_in_generate=True, callback_on_step_end=steps.append, **options)
        runs.append((found.history, steps))
    (history, steps), (expected, expected_steps) = runs
    assert [canvas.tolist() for canvas in history] == [canvas.tolist() for canvas in expected]
    for step, other in zip(steps, expected_steps, strict=True):
        for name in ("block", "step", "start"):
            assert getattr(step, name) == getattr(other, name)
        for name in ("samples", "tokens", "committed", "candidates"):
            assert getattr(step, name).tolist() == getattr(other, name).tolist()
        torch.testing.assert_close(step.confidence, other.confidence, rtol=1e-4, atol=1e-6)


def test_a_streamer_gets_what_it_always_gets(model, processor, few_looks):
    inputs = processor(text="Hi", return_tensors="pt")
    streamed, expected = Recorder(), Recorder()
    options = {"max_new_tokens": 8, "block_length": 4}
    model.generate(**inputs, streamer=streamed, **options, **STATIC)
    model.generate(**inputs, streamer=expected, **options)
    plain = [[(kind, None if value is None else value.tolist()) for kind, value in each.calls]
             for each in (streamed, expected)]  # fmt: skip
    assert plain[0] == plain[1]


# Passes


def test_the_host_looks_before_every_whole_pass_and_seldom_otherwise(mixed, model, few_looks, monkeypatch):
    """Eight steps; all samples are done after the second."""
    _, batch = mixed
    looks, passes = [], []
    look, active = StaticPasses.look, StaticLoop._active
    monkeypatch.setattr(StaticPasses, "look", lambda self, whole: (passes.append(whole), look(self, whole))[1])
    monkeypatch.setattr(StaticLoop, "_active", lambda *args: (looks.append(len(passes)), active(*args))[1])
    rule = ConfidenceThreshold(0.0)
    options = {"max_new_tokens": 8, "sampler_config": rule, "eos_token_id": [], "return_dict_in_generate": True}
    found = model.generate(**batch, prompt_refresh_interval=None, **options, **STATIC)
    assert (looks, passes) == ([0, 4], [True, False, False, False])
    assert found.denoising_steps.tolist() == found.whole_forwards.tolist() == [1] * 5
    looks.clear(), passes.clear()
    model.generate(**batch, prompt_refresh_interval=2, **options, **STATIC)
    assert (looks, passes) == ([0, 2], [True, False])
    looks.clear(), passes.clear()
    model.generate(**batch, **options, **STATIC)
    assert (looks, passes) == ([0, 1], [True])


def test_keys_and_values_stay_where_they_are(mixed, model, monkeypatch):
    _, batch = mixed
    places = []
    look = StaticPasses.look
    monkeypatch.setattr(
        StaticPasses,
        "look",
        lambda self, whole: (places.append([part.data_ptr() for part in self.buffers()]), look(self, whole))[1],
    )
    model.generate(**batch, max_new_tokens=8, block_length=4, prompt_refresh_interval=2, eos_token_id=[], **STATIC)
    assert len(places) == 8
    assert places[0] == []
    assert len(set(map(tuple, places[1:]))) == 1
    assert len(places[1]) == 2 * len(model.model.language_model.layers)


# Compiled


def compiled(**options):
    return {**STATIC, "compile_config": CompileConfig(backend="eager", fullgraph=True, mode=None, **options)}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"prompt_refresh_interval": 3, "block_length": 4}, id="prompt", marks=pytest.mark.slow),
        pytest.param(
            {"prompt_refresh_interval": 3, "block_length": 4, "use_cache": "dual", "threshold": 0.12}, id="dual"
        ),
        pytest.param(
            {"prompt_refresh_interval": None, "guidance_scale": 1.5, "stability_threshold": 2},
            id="guidance",
            marks=pytest.mark.slow,
        ),
        pytest.param({"block_length": 4}, id="exact"),
    ],
)
def test_a_step_is_one_graph_for_all_steps_blocks_and_later_calls(settings, mixed, model):
    """A graph cannot ask for a value: `fullgraph` is an error where something does."""
    _, batch = mixed
    options = {"max_new_tokens": 12, "eos_token_id": [], **WHOLE_OUTPUT, **settings}
    ordinary = model.generate(**batch, **options)
    torch._dynamo.reset()
    counters.clear()
    assert_same(model.generate(**batch, **options, **compiled()), ordinary)
    assert counters["stats"]["unique_graphs"] == 1
    assert_same(model.generate(**batch, **options, **compiled()), ordinary)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_nothing_is_compiled_on_a_cpu_unless_asked(model, processor):
    inputs = processor(text="Hi", return_tensors="pt")
    torch._dynamo.reset()
    counters.clear()
    options = {"max_new_tokens": 4, "prompt_refresh_interval": None}
    model.generate(**inputs, **options, **STATIC)
    model.generate(**inputs, **options, **compiled(), disable_compile=True)
    assert not counters["stats"]
    model.generate(**inputs, **options, **compiled())
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_compiled_steps_with_cuda_graphs_write_the_same(tiny_model):
    model = tiny_model().cuda()
    prompts = torch.randint(4, 60, (3, 40), generator=torch.Generator().manual_seed(0)).cuda()
    for interval in (1, 4, None):
        options = {"max_new_tokens": 16, "block_length": 8, "prompt_refresh_interval": interval}
        ordinary = model.generate(prompts, **options)
        for _ in range(3):
            assert torch.equal(model.generate(prompts, **options, **STATIC), ordinary)


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5}, r"^temperature=0\.5 does not go with cache_implementation=\"static\", whose steps "),
        ({"remasking": "random"}, r"^remasking='random' does not go with"),
        ({"no_repeat_ngram_size": 2}, r"^no_repeat_ngram_size=2 does not go with"),
        ({"allowed_tokens_fn": lambda *_: None}, r"^logits_processor or allowed_tokens_fn does not go with"),
        ({"stopping_criteria": [MaxTimeCriteria(9.0)]}, r"^a MaxTimeCriteria, asked after every step, does not go"),
        ({"compile_config": 3}, r"^compile_config=3 must be a CompileConfig of transformers"),
        ({"cache_implementation": "offloaded"}, r"^cache_implementation='offloaded' is not known; choose one of dyn"),
        ({"cache_implementation": None, "compile_config": CompileConfig()}, r"and needs cache_implementation=\"stat"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options, message, model, processor):
    inputs = processor(text="Hi", return_tensors="pt")
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, max_new_tokens=4, **{**STATIC, **options})


def test_the_settings_are_saved_but_not_how_to_compile(tmp_path):
    config = LladaVGenerationConfig(cache_implementation="static", compile_config=CompileConfig(dynamic=False))
    config.save_pretrained(tmp_path)
    loaded = LladaVGenerationConfig.from_pretrained(tmp_path)
    assert (loaded.cache_implementation, loaded.compile_config) == ("static", None)
