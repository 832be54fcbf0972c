"""One self-rewarding round with a peer library, in a process of its own: answers, then judgements of those answers.

    python benchmarks/peers.py transformers|tunix --model DIR [--threads 2]

The parent speaks JSON lines over stdin and stdout. The worker says {"ready": true} once the model is loaded, answers
each {"do": "round", ...} (the other fields: `Request`) with one line, and ends at {"do": "quit"} or at the end of its
input. Whatever the libraries print goes to stderr. DIR is a Hugging Face folder of a Llama model with tied embeddings,
stored and computed in float32.

Each peer is used as its manual shows, plain `generate` of transformers and plain `Sampler` of Tunix 0.1.7. Both copy a
prompt that is sampled several times, so that each copy is prefilled. Each row gets exactly the new tokens asked for, as
the end of a turn is never sampled. Tunix compiles each shape when it first meets it: run a round before the timed one.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

BUCKET = 16  # a Tunix prompt is padded to the next multiple of this over its phase's longest


@dataclass(frozen=True)
class Request:
    """`n` answers to each prompt and `samples` judgements of each answer, `batch_rows` sequences at a time or fewer."""

    prompts: list[str]  # user messages
    n: int
    samples: int
    template: str  # the judge's user message, with {{prompt}} and {{response}}
    response_tokens: int
    judgement_tokens: int
    temperature: float
    top_p: float
    batch_rows: int  # at least `n` and `samples`
    seed: int


@dataclass(frozen=True)
class Batch:
    """`copies` continuations of each text, `new_tokens` long; no text of this phase is longer than `longest` tokens."""

    texts: list[str]
    copies: int
    new_tokens: int
    longest: int
    seed: int


Rows = list[list[int]]  # new token ids, the rows of one text side by side


class TransformersPeer:
    """`generate` with scaled dot product attention and its default cache."""

    def __init__(self, folder: Path, threads: int):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        self.model.eval()

    def generate(self, batch: Batch, request: Request) -> tuple[Rows, int]:
        """The new tokens, and how many prompt tokens were fed, copies and padding included."""
        prompts = self.tokenizer(batch.texts, padding=True, add_special_tokens=False, return_tensors="pt")
        self.torch.manual_seed(batch.seed)
        with self.torch.inference_mode():
            rows = self.model.generate(
                input_ids=prompts["input_ids"],
                attention_mask=prompts["attention_mask"],
                num_return_sequences=batch.copies,
                min_new_tokens=batch.new_tokens,
                max_new_tokens=batch.new_tokens,
                do_sample=True,
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=0,
            )
        width = prompts["input_ids"].shape[1]
        return rows[:, width:].tolist(), width * len(rows)


class TunixPeer:
    """`Sampler`, one for each cache size, the cache just large enough for its phase."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer
        from tunix.generate import sampler
        from tunix.models.llama3 import model, params

        given = json.loads((folder / "config.json").read_text())
        config = model.ModelConfig(
            num_layers=given["num_hidden_layers"],
            vocab_size=given["vocab_size"],
            embed_dim=given["hidden_size"],
            hidden_dim=given["intermediate_size"],
            num_heads=given["num_attention_heads"],
            head_dim=given["head_dim"],
            num_kv_heads=given["num_key_value_heads"],
            rope_theta=given["rope_theta"],
            norm_eps=given["rms_norm_eps"],
            weight_tying=given["tie_word_embeddings"],
        )
        # Tunix 0.1.7 doesn't hand rope_theta to its Llama attention, so that apply_rope's default of 1e6 would stand.
        model.apply_rope = functools.partial(model.apply_rope, rope_theta=given["rope_theta"])
        transformer = params.create_model_from_safe_tensors(str(folder), config)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # The sampler masks every pad token, and here the pad token is the end of a turn, which all prompts have inside.
        self.tokenizer.pad_token = self.tokenizer.unk_token

        def sampler_of(size: int) -> sampler.Sampler:
            cache = sampler.CacheConfig(size, config.num_layers, config.num_kv_heads, config.head_dim)
            return sampler.Sampler(transformer, self.tokenizer, cache)

        self.sampler = functools.cache(sampler_of)  # a sampler holds its compiled programs

    def generate(self, batch: Batch, request: Request) -> tuple[Rows, int]:
        """The new tokens, and how many prompt tokens were fed, copies and padding included."""
        width = -(-batch.longest // BUCKET) * BUCKET
        out = self.sampler(width + batch.new_tokens)(
            [text for text in batch.texts for _ in range(batch.copies)],
            max_generation_steps=batch.new_tokens,
            max_prompt_length=width,
            # The sampler has no min_new_tokens: forbid the end of a turn, and padding, which would be masked.
            forbidden_tokens=[self.tokenizer.eos_token_id, self.tokenizer.pad_token_id],
            temperature=request.temperature,
            top_p=request.top_p,
            seed=batch.seed,
        )
        return [row.tolist() for row in out.tokens], out.padded_prompt_tokens.size


def by_length(lengths: list[int], most: int) -> list[list[int]]:
    """Indices of prompts of like length together, in batches of like size, none above `most`."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    count = -(-len(order) // most)
    edges = [len(order) * part // count for part in range(count + 1)]
    return [order[start:stop] for start, stop in itertools.pairwise(edges)]


class Round:
    """One round's sampling, and its counts."""

    def __init__(self, peer: TransformersPeer | TunixPeer, request: Request):
        self.peer, self.request = peer, request
        self.seeds = random.Random(request.seed)  # one for each batch: else Tunix repeats itself from batch to batch
        self.new_tokens = self.prompt_tokens = 0

    def templated(self, messages: list[str]) -> tuple[list[str], list[int]]:
        """User messages as the model reads them, up to where its own turn begins, and their lengths in tokens."""
        tokenizer = self.peer.tokenizer
        chats = [[{"role": "user", "content": message}] for message in messages]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        return texts, [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def sample(self, messages: list[str], copies: int, new_tokens: int, room: int = 0) -> list[Rows]:
        """`copies` answers to each message. `room`: prompt tokens to make place for at least."""
        texts, lengths = self.templated(messages)
        samples: list[Rows] = [[] for _ in texts]
        for indices in by_length(lengths, max(1, self.request.batch_rows // copies)):
            chosen, seed = [texts[index] for index in indices], self.seeds.getrandbits(31)
            batch = Batch(chosen, copies, new_tokens, max(room, *lengths), seed)
            rows, fed = self.peer.generate(batch, self.request)
            self.new_tokens += sum(map(len, rows))
            self.prompt_tokens += fed
            for place, index in enumerate(indices):
                samples[index] = rows[place * copies : (place + 1) * copies]
        return samples

    def decode(self, rows: Rows) -> list[str]:
        return self.peer.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def questions(self, responses: list[list[str]]) -> list[str]:
        """The judge's user message about each answer, in the order of the prompts."""
        asked = [self.request.template.replace("{{prompt}}", prompt) for prompt in self.request.prompts]
        return [
            ask.replace("{{response}}", text) for ask, texts in zip(asked, responses, strict=True) for text in texts
        ]

    def run(self) -> dict[str, Any]:
        """Answers, then judgements; what the parent is told of them."""
        request, start = self.request, time.perf_counter()
        answers = self.sample(request.prompts, request.n, request.response_tokens)
        responses = [self.decode(rows) for rows in answers]
        middle = time.perf_counter()
        # Room for a full answer, whatever this round's answers are: shapes stay the same from round to round.
        _, bare = self.templated(self.questions([[""]] * len(request.prompts)))
        room = max(bare) + request.response_tokens
        judged = self.sample(self.questions(responses), request.samples, request.judgement_tokens, room)
        judgements = self.decode([row for rows in judged for row in rows])
        end = time.perf_counter()
        return {
            "seconds": end - start,
            "respond_seconds": middle - start,
            "judge_seconds": end - middle,
            "responses": responses,
            "judgements": judgements,
            "new_tokens": self.new_tokens,
            "prompt_tokens": self.prompt_tokens,
            "response_token_counts": [len(row) for rows in answers for row in rows],
        }


def serve(peer: TransformersPeer | TunixPeer, channel: TextIO) -> None:
    """Answers the parent's requests until it says that it is done."""
    print(json.dumps({"ready": True}), file=channel, flush=True)
    for line in sys.stdin:
        fields = json.loads(line)
        if fields.pop("do") == "quit":
            return
        print(json.dumps(Round(peer, Request(**fields)).run()), file=channel, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A worker that runs self-rewarding rounds with a peer library.")
    parser.add_argument("library", choices=["transformers", "tunix"])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--threads", type=int, default=2, help="of torch; Tunix takes every core it may run on")
    flags = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # from here on, whatever a library prints goes to stderr
    peer = TransformersPeer(flags.model, flags.threads) if flags.library == "transformers" else TunixPeer(flags.model)
    serve(peer, channel)


if __name__ == "__main__":
    main()
