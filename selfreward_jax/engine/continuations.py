"""Continuations of texts: their log-probability, and whether greedy decoding would have written them.

What several continuations go on from, such as the question of a multiple choice, is run through the model once.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.core.mesh import RULES, Rules, put_rows, row_ways
from selfreward_jax.engine.layout import replicate
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.load import Model
from selfreward_jax.llama.params import Params
from selfreward_jax.training.batches import Batch, Example, Text, lay_rows, round_up
from selfreward_jax.training.logps import before_targets, greedy_token_logps, sum_tokens

BUCKET, TARGET_BUCKET = 64, 32  # tokens, and scored tokens, of which rows are filled up to a multiple


@functools.partial(jax.jit, static_argnames=("config", "dtype", "head_chunk", "rules"))
def continuation_logps(
    config: LlamaConfig, params: Params, batch: Batch, *, dtype, head_chunk: int, rules: Rules = RULES
) -> tuple[jax.Array, jax.Array]:
    """Summed log-probability of each example's response, float32 [N], and whether each token is the likeliest, [N]."""
    head, hidden_BWD = before_targets(config, params, batch, rules, dtype=dtype)
    logps_BW, top_BW = greedy_token_logps(config, head, hidden_BWD, batch.targets, head_chunk)
    missed_N = sum_tokens(jnp.where(top_BW, 0.0, 1.0), batch)
    logps_N, greedy_N = replicate((sum_tokens(logps_BW, batch), missed_N == 0))
    return logps_N, greedy_N


def shared_texts(examples: Sequence[Example], longest: int) -> list[Text]:
    """Examples with the same prompt as one text each, of at most `longest` tokens unless one alone is longer."""
    order = sorted(range(len(examples)), key=lambda n: examples[n].prompt_ids)
    texts = []
    for prompt_ids, group in itertools.groupby(order, key=lambda n: examples[n].prompt_ids):
        for owners in _fill(group, lambda n: len(examples[n].response_ids), longest - len(prompt_ids)):
            texts.append(Text(prompt_ids, tuple(examples[n].response_ids for n in owners), owners))
    return sorted(texts, key=lambda text: (-len(text), text.owners))


def _fill(numbers: Iterable[int], size: Callable[[int], int], most: int) -> Iterator[tuple[int, ...]]:
    """Groups of consecutive numbers whose sizes sum up to at most `most`."""
    group, used = [], 0
    for n in numbers:
        if group and used + size(n) > most:
            yield tuple(group)
            group, used = [], 0
        group.append(n)
        used += size(n)
    if group:
        yield tuple(group)


def score_continuations(
    model: Model, examples: Sequence[Example], *, rows: int = 16, head_chunk: int = 512
) -> Iterator[tuple[int, float, bool]]:
    """Yields, for each example in any order, its number, the log-probability of its response, and if it is greedy.

    Args:
      rows: rows at a time; several examples with one prompt share a row.
    """
    rows = round_up(rows, row_ways(model.mesh, model.rules))
    texts = shared_texts(examples, model.context)
    for start in range(0, len(texts), rows):
        some = texts[start : start + rows]
        owners = [n for text in some for n in text.owners]
        places = iter(range(len(owners)))
        laid = [[Text(t.prompt_ids, t.responses, tuple(itertools.islice(places, len(t.owners))))] for t in some]
        laid += [[]] * (rows - len(some))
        batch = lay_rows(laid, round_up(len(owners), rows), bucket=BUCKET, target_bucket=TARGET_BUCKET)
        with jax.set_mesh(model.mesh):
            found = continuation_logps(
                model.config,
                model.params,
                put_rows(batch, model.mesh, model.rules),
                dtype=jnp.dtype(model.dtype),
                head_chunk=head_chunk,
                rules=model.rules,
            )
        logps, greedy = (np.asarray(x) for x in jax.device_get(found))
        yield from ((n, float(logps[k]), bool(greedy[k])) for k, n in enumerate(owners))
