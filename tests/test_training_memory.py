"""What training needs in memory: sums by hand, and what autograd and a whole step really hold on a CPU."""

import dataclasses
import importlib.util
import sys
import weakref
from pathlib import Path

import pytest
import torch

from transformers_lladav import LladaVConfig, LladaVForMaskedDiffusion
from transformers_lladav.quantization import nf4_bytes, nf4_config
from transformers_lladav.recipes import RECIPES, Recipe
from transformers_lladav.trainable import prepare_trainable
from transformers_lladav.training_memory import CARDS, GIGABYTE, LABELS, estimate, fits
from transformers_lladav.training_model import frozen_dtype

SCRIPT = Path(__file__).parent.parent / "model_cards" / "measure_training.py"
LENGTH, PLACEHOLDER, PATCHES = 256, 500, 16
WIDTH, INNER, VISION, LAYERS, VOCABULARY = 4096, 12288, 1152, 32, 126464
PROJECTOR = VISION * WIDTH + WIDTH + WIDTH**2 + WIDTH
ADAPTERS = 16 * LAYERS * (4 * 2 * WIDTH + 3 * (WIDTH + INNER))


def all_parameters():
    """LLaDA-V's, counted by hand from its sizes."""
    block = 4 * (VISION**2 + VISION) + 2 * VISION * 4304 + 4304 + VISION + 4 * VISION
    tower = 3 * 14 * 14 * VISION + VISION + 729 * VISION + 26 * block + 2 * VISION
    return 2 * VOCABULARY * WIDTH + WIDTH + LAYERS * (language_matrices() + 2 * WIDTH) + tower + PROJECTOR + WIDTH


def language_matrices():
    return 4 * WIDTH**2 + 3 * WIDTH * INNER


@pytest.fixture(scope="module")
def live_memory():
    spec = importlib.util.spec_from_file_location("measure_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure_training"] = module
    spec.loader.exec_module(module)
    return module.LiveMemory


def small_config(**text):
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3}
    return LladaVConfig(
        text_config=sizes
        | {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
        | text,
        vision_config={
            "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 64, "patch_size": 16, "vision_use_head": False,
        },
        image_token_id=PLACEHOLDER,
        video_token_id=PLACEHOLDER + 1,
        mask_token_id=PLACEHOLDER - 1,
        output_vocab_size=PLACEHOLDER,
        suppressed_token_ids=[1],
        image_grid_pinpoints=[],
        single_tile_newline=False,
    )  # fmt: skip


def changed(name, **changes):
    recipe = RECIPES[name]
    if lora := changes.pop("lora", None):
        changes["lora"] = dataclasses.replace(recipe.lora, **lora)
    rows = changes.get("device_batch_size", 1)
    return dataclasses.replace(recipe, global_batch_size=rows, **changes)


def prepare(config, recipe, precision):
    torch.manual_seed(0)
    model = LladaVForMaskedDiffusion(config).to(frozen_dtype(recipe, precision))
    if recipe.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    return prepare_trainable(model, recipe).train()


def sample(rows):
    """A picture and then text, all of it learned; with two rows the first is padded."""
    ids = torch.full((rows, LENGTH), PLACEHOLDER - 1)
    ids[:, :PATCHES] = PLACEHOLDER
    labels = torch.randint(4, PLACEHOLDER - 1, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    labels[:, :PATCHES] = -100
    batch = {
        "input_ids": ids,
        "labels": labels,
        "loss_weights": torch.ones(rows, LENGTH),
        "pixel_values": torch.zeros(rows, 3, 64, 64),
        "image_sizes": torch.full((rows, 2), 64),
    }
    if rows > 1:
        mask = torch.ones_like(ids)
        mask[0, -8:] = 0
        batch["attention_mask"] = mask
    return batch


def step_loss(model, batch, precision):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return model(**batch).loss


def saved_bytes(model, batch, precision):
    """Bytes of the storages that autograd keeps after a forward pass, parameters and buffers left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    alive = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in alive:
            alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, alive.pop, storage._cdata)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step_loss(model, batch, precision)
    assert loss.requires_grad
    return sum(alive.values())


KEPT = [
    ("lora", "bf16", {}),
    ("lora", "fp32", {}),
    ("lora", "bf16", {"lora": {"dora": True}}),
    ("lora", "bf16", {"lora": {"targets": r".*(q_proj|out_proj|fc2)"}}),
    ("lora", "bf16", {"device_batch_size": 2}),
    ("projector", "bf16", {}),
    ("full", "bf16", {}),
    ("full", "fp32", {}),
    ("full", "bf16", {"trains": ("vision_tower", "newline")}),
]


@pytest.mark.parametrize(("name", "precision", "changes"), KEPT)
def test_activations_are_what_autograd_keeps(name, precision, changes):
    recipe = changed(name, gradient_checkpointing=False, **changes)
    config = small_config()
    parts = estimate(config, recipe, LENGTH, 1, precision=precision)
    found = saved_bytes(prepare(config, recipe, precision), sample(recipe.device_batch_size), precision)
    assert parts.language_activations + parts.vision_activations + parts.half_copies == pytest.approx(found, rel=0.02)


def test_grouped_keys_are_kept_once():
    recipe = changed("projector", gradient_checkpointing=False)
    found = []
    for heads in (4, 1):
        config = small_config(num_key_value_heads=heads)
        parts = estimate(config, recipe, LENGTH, 1, precision="fp32")
        found.append((parts.language_activations, saved_bytes(prepare(config, recipe, "fp32"), sample(1), "fp32")))
    (many, many_saved), (one, one_saved) = found
    assert many - one == many_saved - one_saved == 3 * 2 * 4 * LENGTH * (128 - 32)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_checkpointing_keeps_the_inputs_of_layers(name):
    recipe, config = changed(name), small_config()
    parts = estimate(config, recipe, LENGTH, 1, precision="fp32")
    found = saved_bytes(prepare(config, recipe, "fp32"), sample(1), "fp32")
    assert parts.language_activations + parts.vision_activations == pytest.approx(found, rel=0.02)


STEPS = [
    ("lora", "bf16", True, 1),
    ("lora", "bf16", True, 2),
    ("lora", "bf16", False, 1),
    ("lora", "fp32", True, 1),
    ("projector", "bf16", True, 1),
    ("full", "bf16", True, 1),
    ("full", "bf16", False, 1),
    ("full", "fp32", True, 1),
]


@pytest.mark.parametrize(("name", "precision", "checkpointing", "rows"), STEPS)
def test_the_sum_is_the_peak_of_a_step(live_memory, name, precision, checkpointing, rows):
    recipe = changed(name, gradient_checkpointing=checkpointing, device_batch_size=rows)
    config = small_config()
    parts = estimate(config, recipe, LENGTH, 1, precision=precision)
    model, batch = prepare(config, recipe, precision), sample(rows)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    step_loss(model, batch, precision).backward()
    optimizer.step()  # moments and gradients are there now, as in every step but a run's first
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    with live_memory([*model.parameters(), *model.buffers(), *gradients, *batch.values()]) as memory:
        step_loss(model, batch, precision).backward()
    assert parts.frozen_weights + parts.trained_weights == size_of(model.parameters())
    assert parts.trained_weights == size_of(trained)
    assert parts.gradients == pytest.approx(size_of(gradients), rel=1e-3)  # a newline that no picture has
    assert parts.optimizer_states == pytest.approx(size_of(moments), rel=1e-3)
    passing = parts.half_copies + parts.language_activations + parts.vision_activations + parts.working
    assert passing / memory.peak == pytest.approx(1.1, abs=0.2)  # rather too much than too little
    known = size_of(model.parameters()) + size_of(gradients) + size_of(moments)
    assert parts.total - parts.allowance == pytest.approx(known + memory.peak, rel=0.08)


def size_of(tensors):
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_lora_on_the_release_by_hand():
    parts = estimate(LladaVConfig(), RECIPES["lora"], 2048, 2)
    assert parts.frozen_weights == 2 * all_parameters()  # the projector's original stays beside its copy
    assert parts.trained_weights == parts.gradients == 4 * (ADAPTERS + PROJECTOR)
    assert parts.optimizer_states == 8 * (ADAPTERS + PROJECTOR)
    assert parts.half_copies == 2 * (ADAPTERS + PROJECTOR - 2 * WIDTH) + 2 * 2 * WIDTH
    # Inputs of 32 layers, the loss's rows with 12 bytes beside, and the last norm's float32 with a factor.
    assert parts.language_activations == 2048 * (32 * 2 * WIDTH + 2 * WIDTH + 12 + 4 * WIDTH + 4)
    assert parts.vision_activations == 2 * 2 * 729 * (VISION + 2 * WIDTH)
    rest = parts.total - parts.allowance
    assert parts.allowance == GIGABYTE + round(0.05 * rest)


def test_four_bits_shrink_the_language_models_layers_alone():
    plain, four_bit = (estimate(LladaVConfig(), RECIPES[name], 2048, 2) for name in ("lora", "qlora"))
    matrices = LAYERS * language_matrices()
    assert plain.frozen_weights - four_bit.frozen_weights == pytest.approx(matrices * (2 - 4.127 / 8), rel=1e-5)
    for name in ("trained_weights", "optimizer_states", "language_activations", "vision_activations"):
        assert getattr(plain, name) == getattr(four_bit, name)


def test_a_full_run_holds_everything_four_times_and_casts_it_once():
    parts = estimate(LladaVConfig(), RECIPES["full"], 2048, 2)
    never_read = 2 * VISION
    assert parts.frozen_weights == 4 * never_read
    assert parts.trained_weights == 4 * (all_parameters() - never_read)
    uncast = VOCABULARY * WIDTH + WIDTH * (2 * LAYERS + 2) + VISION * (729 + 4 * 26 + 2)  # embeddings, norms, newline
    assert parts.half_copies == 2 * (all_parameters() - uncast)


def test_devices_share_or_repeat():
    config, full = LladaVConfig(), RECIPES["full"]
    alone = estimate(config, full, 2048, 2)
    copies, shards = (estimate(config, full, 2048, 2, devices=8, sharded=sharded) for sharded in (False, True))
    assert copies.communication == alone.gradients
    assert copies.trained_weights == alone.trained_weights
    assert shards.trained_weights == alone.trained_weights // 8
    assert shards.optimizer_states == alone.optimizer_states // 8
    assert shards.half_copies == 0
    outside, layer = 2 * VOCABULARY * WIDTH, language_matrices()  # gathered twice: as weights, and as gradients
    assert shards.communication == pytest.approx(2 * (2 * outside + 3 * layer), rel=0.02)
    assert shards.total < 80 * GIGABYTE < alone.total


def test_complementary_views_and_larger_batches_hold_more_tokens():
    config, one = small_config(), changed("lora")
    two = changed("lora", complementary=True)
    assert estimate(config, two, 64, 1).language_activations == pytest.approx(
        2 * estimate(config, one, 64, 1).language_activations, rel=0.15
    )
    packed = changed("lora", packing=True)
    mask = estimate(config, packed, 64, 1).language_activations - estimate(config, one, 64, 1).language_activations
    assert mask == 64 * 64


def test_a_head_alone_leaves_the_language_model_without_activations():
    head = Recipe(name="head", description="", trains=("head",), gradient_checkpointing=False)
    parts = estimate(small_config(), head, LENGTH, 1)
    assert parts.language_activations == LENGTH * (2 * 128 + 12)
    assert parts.vision_activations == 0


@pytest.mark.parametrize(("entries", "size"), [(64, 32 + 1 + 4), (4096**2, 4096**2 // 2 + 4096**2 // 64 + 4 * 1024)])
def test_four_bit_bytes(entries, size):
    assert nf4_bytes(entries) == size


def test_four_bit_bytes_are_those_that_are_stored():
    functional = pytest.importorskip("bitsandbytes.functional", reason="four-bit weights need bitsandbytes")
    matrix = torch.randn(384, 128)
    packed, state = functional.quantize_4bit(matrix, compress_statistics=True, quant_type="nf4")
    assert nf4_bytes(matrix.numel()) == packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes


def test_the_table_sums_up_and_says_that_it_is_computed():
    parts = estimate(small_config(), RECIPES["lora"], 64, 1)
    *rows, (label, total) = parts.table()
    assert "computed, not measured" in label
    assert total == parts.total == sum(size for _, size in rows)
    assert LABELS["communication"] not in dict(rows)  # there is one device
    assert list(LABELS) == [field.name for field in dataclasses.fields(parts)]


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_what_fits_follows_from_the_bytes(name):
    rows = fits(small_config(num_hidden_layers=8), RECIPES[name])
    assert [(row.tokens, row.checkpointing) for row in rows] == [
        (tokens, checkpointing) for tokens in (2048, 4096, 8192) for checkpointing in (True, False)
    ]
    for row in rows:
        assert row.cards == tuple(card for card in CARDS if card * 10**9 >= row.device_bytes)
        assert (row.sharded_bytes is None) == (name == "qlora")
        assert row.node == (name == "lora")
    assert all(kept.device_bytes < all_of.device_bytes for kept, all_of in zip(rows[::2], rows[1::2], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, r"tokens=0; pass at least 1"),
        ({"tiles": -1}, r"tiles=-1; pass at least 0"),
        ({"devices": 0}, r"devices=0"),
        ({"sharded": True}, r"sharded=True with devices=1.*devices=2"),
        ({"recipe": RECIPES["qlora"], "sharded": True, "devices": 2}, r"quantization='nf4' is not sharded"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        estimate(**{"config": None, "recipe": RECIPES["lora"], "tokens": 8, "tiles": 0} | options)


def test_four_bit_training_keeps_what_the_sum_says(live_memory, tmp_path):
    pytest.importorskip("bitsandbytes", reason="four-bit weights need bitsandbytes")
    recipe, config = changed("qlora"), small_config()
    torch.manual_seed(0)
    LladaVForMaskedDiffusion(config).save_pretrained(tmp_path)
    loaded = LladaVForMaskedDiffusion.from_pretrained(
        tmp_path, dtype=torch.bfloat16, quantization_config=nf4_config(torch.bfloat16)
    )
    loaded.gradient_checkpointing_enable({"use_reentrant": False})
    model, batch = prepare_trainable(loaded, recipe).train(), sample(1)
    parts = estimate(config, recipe, LENGTH, 1)
    states = [parameter.quant_state for parameter in model.parameters() if hasattr(parameter, "quant_state")]
    constants = size_of([state.absmax for state in states] + [state.state2.absmax for state in states])
    weights = size_of(model.parameters()) + constants
    assert parts.frozen_weights + parts.trained_weights == weights
    step_loss(model, batch, "bf16").backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert size_of(gradients) == parts.gradients
    with live_memory([*model.parameters(), *model.buffers(), *gradients, *batch.values()]) as memory:
        step_loss(model, batch, "bf16").backward()
    held = parts.total - parts.allowance - parts.optimizer_states
    assert held == pytest.approx(weights + size_of(gradients) + memory.peak, rel=0.08)


def test_a_large_vocabulary_is_held_for_one_chunk_of_the_loss(live_memory):
    recipe, config = changed("projector"), small_config(vocab_size=8192, num_hidden_layers=1)
    parts = estimate(config, recipe, LENGTH, 1)
    assert parts.working == 12 * LENGTH * 8192
    assert estimate(config, recipe, 300, 1).working == parts.working  # 256 rows at a time
    model, batch = prepare(config, recipe, "bf16"), sample(1)
    step_loss(model, batch, "bf16").backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with live_memory([*model.parameters(), *model.buffers(), *gradients, *batch.values()]) as memory:
        step_loss(model, batch, "bf16").backward()
    passing = parts.half_copies + parts.language_activations + parts.vision_activations + parts.working
    assert passing == pytest.approx(memory.peak, rel=0.1)
