"""Our logits are those of `transformers`: against golden files everywhere, against PyTorch where it is installed."""

import jax
import numpy as np
import pytest

from selfreward_jax.llama import gguf, hf, hf_save
from selfreward_jax.llama.model import forward
from tests.llama.make_golden import (
    GOLDEN,
    POSITIONS,
    SMOLLM_POSITIONS,
    SMOLLM_VOCABULARY_STEP,
    VARIANTS,
    random_tokens,
    smollm_gguf,
    smollm_tokens,
    transformers_logits,
    write_model,
)

TOLERANCE = 1e-4


def our_logits(config, params, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V]; in full float32 on accelerators too."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(forward, static_argnums=0)(config, params, tokens)[0])


def load(folder):
    config = hf.read_config(folder)
    return config, hf.load_params(folder, config)


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert theirs.std() > 1, "logits near zero would agree whatever the model does"
    error = np.abs(ours - theirs).max()
    print(f"max abs error {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_random_model_has_the_golden_logits(name, tmp_path):
    golden = np.load(GOLDEN / f"{name}.npz")
    config, params = load(write_model(tmp_path, VARIANTS[name]))
    assert_same(our_logits(config, params, golden["tokens"])[POSITIONS], golden["logits"])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.torch
def test_random_model_has_the_logits_of_transformers(name, tmp_path):
    tokens = random_tokens()
    original = write_model(tmp_path / "original", VARIANTS[name])
    config, params = load(original)
    theirs = transformers_logits(original, tokens)
    assert_same(our_logits(config, params, tokens), theirs)

    hf_save.save_pretrained(tmp_path / "exported", config, params, None)
    np.testing.assert_array_equal(transformers_logits(tmp_path / "exported", tokens), theirs)


@pytest.fixture(scope="module")
def smollm():
    """Config and float32 parameters of SmolLM2-135M-Instruct, dequantised."""
    config = gguf.read_config(smollm_gguf())
    return config, gguf.load_params(smollm_gguf(), config)


@pytest.fixture(scope="module")
def smollm_chat():
    tokens = smollm_tokens(gguf.load_tokenizer(smollm_gguf()))
    assert tokens.shape[1] >= 320
    return tokens


@pytest.mark.slow
def test_smollm_has_the_golden_logits(smollm):
    golden = np.load(GOLDEN / "smollm2.npz")
    ours = our_logits(*smollm, golden["tokens"])
    assert_same(ours[SMOLLM_POSITIONS, ::SMOLLM_VOCABULARY_STEP], golden["logits"])


@pytest.mark.slow
@pytest.mark.torch
def test_smollm_has_the_logits_of_transformers_after_256_tokens(smollm, smollm_chat, tmp_path):
    hf_save.save_pretrained(tmp_path / "exported", *smollm, None)
    ours = our_logits(*smollm, smollm_chat)
    theirs = transformers_logits(tmp_path / "exported", smollm_chat)
    assert_same(ours[255:], theirs[255:])

    # Over all positions float32 rounding alone moves PyTorch's logits by 1e-4 (its two attention kernels differ by
    # 7e-5), so there the yardstick is float64: ours are about as far from it as PyTorch's own float32. How sums are
    # split differs from one processor to the next, hence the factor.
    exact = transformers_logits(tmp_path / "exported", smollm_chat, dtype="float64")
    ours, theirs = np.abs(ours - exact), np.abs(theirs - exact)
    for measure in (np.mean, np.max):
        our_error, their_error = measure(ours), measure(theirs)
        print(f"{measure.__name__} error against float64: ours {our_error:.2e}, theirs {their_error:.2e}")
        assert our_error < 2 * their_error


@pytest.mark.slow
@pytest.mark.torch
def test_smollm_has_the_logits_of_transformers_own_gguf_reader(smollm, smollm_chat, monkeypatch):
    """Independent of our reader: were queries and keys left in llama.cpp's order, only this would show it."""
    # transformers asks for accelerate before it reads a GGUF file, but only places models on devices with it.
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *args, **kwargs: True)
    path = smollm_gguf()
    theirs = transformers_logits(path.parent, smollm_chat, gguf_file=path.name)
    assert_same(our_logits(*smollm, smollm_chat)[255:], theirs[255:])
