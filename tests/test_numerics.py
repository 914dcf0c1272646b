"""Half precision stays within rounding at real sizes, extreme numbers are survived, and float64 is not needed.

Bounds are those of rounding. u is the unit roundoff of a type: 2^-11 for float16, 2^-8 for bfloat16, 2^-24 for
float32. A sum of n products that is kept in float32 is off by no more than g(n) = n u / (1 - n u) times the sum of
their sizes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); rounding the result adds u.
"""

import copy
import math

import pytest
import torch
from torch import nn
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from device_without_float64 import DEVICE, Remote, device_without_float64, send
from transformers_lladav import LladaVConfig, sampling_lladav
from transformers_lladav.forward_passes_lladav import ForwardPasses
from transformers_lladav.modeling_lladav import LladaVMultiModalProjector
from transformers_lladav.modeling_text_lladav import LladaVDecoderLayer, LladaVTextModel
from transformers_lladav.sampling_lladav import REMASKING, OfficialDraws, SampleDraws, SamplingSettings, predict

HALVES = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
U32 = 2.0**-24
SMALLEST = 2.0**-24  # float16's; below it results round to 0
NO_DRAWS = SampleDraws([])


def accumulated(count):
    return count * U32 / (1 - count * U32)


def linear_bound(module, inputs, exact, u):
    sizes = inputs.double().abs() @ module.weight.double().abs().T
    bias = 0 if module.bias is None else module.bias.double().abs()
    # Products go through float32; the bias is added there or, rounded once more, after it.
    return accumulated(module.in_features + 1) * (sizes + bias) + 2 * u * (exact.abs() + bias) + SMALLEST


def norm_bound(module, inputs, exact, u):
    width = inputs.shape[-1]
    if isinstance(module, nn.LayerNorm):
        values = inputs.double()
        deviation = values.std(dim=-1, keepdim=True, correction=0)
        # The mean is off by g(width) of the largest entry, and the variance by as much relatively.
        off = 4 * accumulated(width) * values.abs().amax(dim=-1, keepdim=True) / deviation
        return off * (module.weight.double().abs() + exact.abs()) + u * exact.abs() + SMALLEST
    return (2 * u + 4 * accumulated(width)) * exact.abs() + SMALLEST  # rounded before and after the weight


def reference(module, inputs):
    """What a module would give if numbers had no end."""
    return copy.deepcopy(module).double()(inputs.double())


def exact_norm(module, inputs):
    """transformers' RMSNorm takes its mean in float32 whatever comes in."""
    if isinstance(module, nn.LayerNorm):
        return reference(module, inputs)
    values = inputs.double()
    scale = (values.square().mean(dim=-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return module.weight.double() * values * scale


def check_parts(layer, run, u):
    """Run a layer and hold every linear map and norm in it to its bound; returns what each was given and gave."""
    seen = {}
    parts = {
        name: part
        for name, part in layer.named_modules()
        if isinstance(part, nn.Linear) or "Norm" in type(part).__name__
    }
    hooks = [
        part.register_forward_hook(lambda _, given, got, name=name: seen.__setitem__(name, (given[0], got)))
        for name, part in parts.items()
    ]
    output = run(layer)
    for hook in hooks:
        hook.remove()
    assert seen.keys() == parts.keys()
    for name, (given, got) in seen.items():
        part = parts[name]
        exact = reference(part, given) if isinstance(part, nn.Linear) else exact_norm(part, given)
        bound = (linear_bound if isinstance(part, nn.Linear) else norm_bound)(part, given, exact, u)
        assert torch.isfinite(got).all(), name
        excess = ((got.double() - exact).abs() / bound).max().item()
        assert excess <= 1, f"{name} is {excess:.3g} times its bound off"
    assert torch.isfinite(output).all()
    return seen


def massive(shape, largest, seed=0):
    """States with a few channels that are thousands of times the others, as trained models have them."""
    states = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    states[..., :: shape[-1] // 4] = largest * states[..., :: shape[-1] // 4].sign()
    return states


@pytest.fixture(scope="module")
def config():
    return LladaVConfig()


def drawn(module, gain=0.02):
    """Random weights; a few thousand numbers over and over, since so many take long to draw."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(99_991, generator=generator) * gain  # a prime, so that rows differ
    for name, parameter in module.named_parameters():
        if name.endswith("bias") or parameter.ndim == 1:
            parameter.data.fill_(0.1 if name.endswith("bias") else 1.0)
        else:
            repeats = -(-parameter.numel() // len(values))
            parameter.data = values.repeat(repeats)[: parameter.numel()].view(parameter.shape).to(parameter.dtype)
    return module.eval().requires_grad_(False)


def empty(build, dtype):
    """A module in a type, its memory taken once."""
    with torch.device("meta"):
        module = build()
    return drawn(module.to(dtype).to_empty(device="cpu"))


def test_the_sizes_are_llada_vs(config):
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_attention_heads, text.intermediate_size) == (4096, 32, 12288)
    assert (text.vocab_size, vision.hidden_size) == (126464, 1152)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
def test_a_text_layer_stays_in_range_and_within_rounding(config, dtype, kernel):
    text = copy.deepcopy(config.text_config)
    text.num_hidden_layers, text.vocab_size = 1, 8
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    text._attn_implementation = kernel
    layer = empty(lambda: LladaVDecoderLayer(text, 0), dtype)
    rotary = LladaVTextModel._from_config(
        copy.deepcopy(text).__class__(
            **{**text.to_dict(), "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8}
        )
    ).rotary_emb
    states = massive((1, 6, text.hidden_size), 3e4).to(dtype)
    turned = rotary(states, position_ids=torch.tensor([[0, 1, 2, 3, 4000, 16383]]))
    u = HALVES[dtype]
    seen = check_parts(layer, lambda part: part(states, position_embeddings=turned), u)
    # What attention gives is a mean of values: no head leaves the range of its own, however sure it is.
    values, means = seen["self_attn.v_proj"][1].double(), seen["self_attn.o_proj"][0].double()
    slack = 4 * u * values.abs().amax(dim=1) + SMALLEST
    assert (means <= values.amax(dim=1) + slack).all()
    assert (means >= values.amin(dim=1) - slack).all()
    # Gate and up are rounded, then the activation and the product.
    gate, up = (seen[f"mlp.{name}_proj"][1].double() for name in ("gate", "up"))
    product = nn.functional.silu(gate) * up
    assert ((seen["mlp.down_proj"][0].double() - product).abs() <= 3 * u * product.abs() + SMALLEST).all()


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
def test_a_vision_layer_and_the_projector_stay_in_range_and_within_rounding(config, dtype):
    vision = copy.deepcopy(config.vision_config)
    vision._attn_implementation = "sdpa"
    layer = empty(lambda: SiglipEncoderLayer(vision), dtype)
    states = massive((1, 8, vision.hidden_size), 3e4).to(dtype)
    seen = check_parts(layer, lambda part: part(states, attention_mask=None), HALVES[dtype])
    assert seen["mlp.fc1"][0].shape[-1] == 1152
    projector = empty(lambda: LladaVMultiModalProjector(config), dtype)
    # What the tower gives has no last norm: hundreds, in a few channels.
    check_parts(projector, lambda part: part(massive((8, vision.hidden_size), 300.0).to(dtype)), HALVES[dtype])


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
def test_confidences_of_the_whole_vocabulary_are_those_of_float64_within_the_rounding_of_the_head(config, dtype):
    text = config.text_config
    rows = text.vocab_size // 128
    head = empty(lambda: nn.Linear(text.hidden_size, rows, bias=False), dtype)
    states = massive((3, text.hidden_size), 40.0).to(dtype)  # the last norm leaves rows of length 64 at most
    exact = reference(head, states).repeat(1, 128)  # (3, 126464)
    whole = nn.Linear(text.hidden_size, 1, bias=False)
    whole.weight = nn.Parameter(head.weight.repeat(128, 1), requires_grad=False)
    logits = whole(states)
    assert logits.shape == (3, 126464)
    off = linear_bound(head, states, exact[:, :rows], HALVES[dtype])
    assert ((logits.double() - exact).abs() <= off.repeat(1, 128)).all()
    suppressed = torch.tensor([126080, 126081, 126346, 126347, *range(126349, 126464)])
    logits, exact = (part.index_fill(1, suppressed, -torch.inf) for part in (logits, exact))
    for name in ("low_confidence", "entropy", "margin"):
        got = predict(logits, torch.ones(1, 3).bool(), SamplingSettings(remasking=name, needs_entropy=True), NO_DRAWS)
        assert torch.isfinite(got.confidence).all()
        assert torch.isfinite(got.entropy).all()
        assert not torch.isin(got.tokens, suppressed).any()
        if name == "low_confidence":
            log_p = exact.log_softmax(dim=1).gather(1, got.tokens.T)[:, 0]
            # A logit that is off by d moves its own probability by e^d and the sum of all by e^d at most.
            assert ((got.confidence[0].log() - log_p).abs() <= 2 * off.amax(dim=1)).all()


LARGE = 1e4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("where", ["cpu", "mps"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.01}, {"temperature": 2.0, "top_k": 2, "top_p": 0.9}])
def test_large_logits_and_suppressed_ones_give_probabilities(dtype, where, settings):
    logits = torch.tensor(
        [
            [LARGE, -LARGE, -torch.inf, 0.0],
            [-LARGE, -torch.inf, -LARGE, -torch.inf],
            [LARGE, LARGE, LARGE, LARGE],
            [-torch.inf, -torch.inf, -torch.inf, -LARGE],
        ]
    ).to(dtype)
    rows, found = torch.ones(1, 4).bool(), {}
    with device_without_float64():
        for name in REMASKING[:1] + REMASKING[2:]:
            draws = SampleDraws([torch.Generator().manual_seed(0)])
            given = (logits, rows) if where == "cpu" else (send(logits), send(rows))
            got = predict(*given, SamplingSettings(remasking=name, needs_entropy=True, **settings), draws)
            parts = (got.tokens, got.confidence, got.entropy)
            found[name] = [part.inner if isinstance(part, Remote) else part for part in parts]
            assert {part.device.type for part in parts} == {where}
    tokens, confidence, entropy = found["low_confidence"]
    assert confidence[0].tolist() == pytest.approx([1, 1 / 2, 1 / 4, 1])
    tempered = [0, math.log(2), math.log(4), 0]
    assert entropy[0].tolist() == pytest.approx(tempered, abs=1e-6)
    assert found["entropy"][1][0].tolist() == pytest.approx([-value for value in tempered], abs=1e-6)
    assert found["margin"][1][0].tolist() == pytest.approx([1, 0, 0, 1])
    assert torch.isfinite(logits[range(4), tokens[0]]).all()  # nothing suppressed is ever taken


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
def test_guidance_does_not_leave_the_range_of_half_precision(dtype):
    class Head:
        """Gives what it is given."""

        config = LladaVConfig()

        @staticmethod
        def lm_head(hidden):
            return hidden

    passes = object.__new__(ForwardPasses)
    passes.model, passes.scale = Head, 3.0
    logits = torch.tensor([[[32768.0, -32768.0]], [[-32768.0, 32768.0]]], dtype=dtype)  # with the prompt and without
    # un + 3 (cond - un): -32768 + 3 * 65536, of which float16 has neither the difference nor the result.
    assert passes._head(logits).tolist() == [[163840.0, -163840.0]]


# A device without float64


def test_the_stand_in_refuses_what_mps_refuses():
    with device_without_float64():
        tensor = torch.zeros(2, 3, device=DEVICE)
        assert (tensor.device.type, tensor.sum().item(), (tensor + 1).device.type) == ("mps", 0, "mps")
        assert tensor.cpu().device.type == "cpu"
        for make in (
            lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE),
            lambda: tensor.double(),
            lambda: tensor.to(torch.float64),
            lambda: tensor.new_zeros(1, dtype=torch.float64),
            lambda: torch.ones(2, dtype=torch.float64).to(DEVICE),
            lambda: torch.rand(2, dtype=torch.float64, device=DEVICE),
        ):
            with pytest.raises(TypeError, match="float64"):
                make()
        with pytest.raises(RuntimeError, match="mixes tensors"):
            tensor + torch.zeros(3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7, "top_p": 0.9},
        {"remasking": "random"},
        {"remasking": "entropy"},
        {"entropy_bound": 0.3, "block_length": 4},
        {"threshold": 0.5, "guidance_scale": 1.5, "prompt_refresh_interval": 2},
        {"use_cache": "dual", "block_length": 4, "prompt_refresh_interval": None},
        {"stability_threshold": 1, "confidence_threshold": 0.5},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_a_generation_makes_no_float64_there_and_gives_the_same_tokens(tiny_model, settings):
    model = tiny_model().requires_grad_(False)
    model.set_attn_implementation("eager")
    model.lm_head.weight *= 30  # untrained, it is so unsure everywhere that rounding tells positions apart
    ids = torch.randint(4, 79, (2, 7), generator=torch.Generator().manual_seed(3))
    settings = {"max_new_tokens": 8, "max_denoising_steps": 8, "return_dict_in_generate": True, **settings}

    def answer(prompt):
        return model.generate(prompt, generator=torch.Generator().manual_seed(0), **settings)

    expected = answer(ids)
    with device_without_float64(model):
        got = answer(send(ids))
        assert got.answers[0].device.type == "mps"
        assert got.sequences.cpu().tolist() == expected.sequences.tolist()


def test_scores_make_no_float64_there(tiny_model):
    model = tiny_model().requires_grad_(False)
    model.set_attn_implementation("eager")
    ids, answers = torch.tensor([[5, 6, 7]]), [[10, 11], [12]]
    expected = model.score(ids, answers).log_likelihoods
    with device_without_float64(model):
        found = model.score(send(ids), answers).log_likelihoods
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_official_draws_are_those_of_a_cpu():
    rows = torch.tensor([[False, True, True]])
    expected = OfficialDraws(torch.Generator().manual_seed(1), 5, 1).tokens(rows, 7)
    with device_without_float64():
        found = OfficialDraws(torch.Generator().manual_seed(1), 5, 1).tokens(send(rows), 7)
    assert torch.equal(found, expected)


def test_noise_is_finite_where_a_uniform_number_rounds_to_one():
    """1 - 2^-30 is 1 in float32, whose noise would be infinite and win against every logit."""

    class Nearly:
        """Draws one number that is nearly 1."""

        def tokens(self, rows, vocabulary):
            return torch.tensor([[0.5, 1 - 2.0**-30]], dtype=torch.float64)

    with device_without_float64():
        logits, rows = send(torch.tensor([[100.0, 0.0]])), send(torch.ones(1, 1).bool())
        got = predict(logits, rows, SamplingSettings(temperature=1.0), Nearly())
    assert got.tokens.inner.tolist() == [[0]]  # 100 + 0.37 against 20.8
    assert sampling_lladav.widest_float(DEVICE) == torch.float32
