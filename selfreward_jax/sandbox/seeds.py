"""What the made world's people wrote, as the files of a run: seeds, a judge template, held-out tasks, and M0."""

import dataclasses
import json
import random
from collections.abc import Callable

import jax
from etils import epath

from selfreward_jax.core.config import differences
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import Row, to_lines
from selfreward_jax.core.store import write_atomic
from selfreward_jax.core.stored import read_json
from selfreward_jax.llama import hf_save
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.params import init_params
from selfreward_jax.methods.self_instruct import few_shot_list
from selfreward_jax.sandbox.world import KINDS, LETTERS, Task, human_answer, human_judgement, random_task, true_score

JUDGE_TEMPLATE = "mark\n{{prompt}}\n{{response}}"
PROMPT_TEMPLATE = "list tasks"
PEOPLE = '''"""How people of this world score an answer."""

from selfreward_jax.sandbox.world import score_of_a_person


def score(prompt, response):
    return score_of_a_person(prompt, response, noise={noise!r}, bias={bias!r}, seed={seed})
'''
LISTED = 9  # tasks of a list: the eight that are shown and the new one
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class WorldSettings:
    """How many examples there are and how bad they are.

    Attributes:
      ift_rows, eft_rows, list_rows: answers, judgements, and lists of tasks from which prompt writing is learnt.
      held_out: tasks on which models are measured.
      answer_error: probability that a person's hand slips at a place of an answer.
      judge_noise: probability that a mark of a person's judgement is the wrong one.
      judge_bias: points that a flourish adds to a person's score.
    """

    ift_rows: int = 3000
    eft_rows: int = 3000
    list_rows: int = 100
    held_out: int = 200
    answer_error: float = 0.45
    judge_noise: float = 0.1
    judge_bias: float = 0.0
    hidden: int = 128
    layers: int = 4


def make_world(folder: epath.Path, settings: WorldSettings, seed: int) -> None:
    """Writes a run's seeds, its templates, what models are measured on, and `model/`: M0, random.

    `tasks.jsonl` holds the tasks of `ift.jsonl`, `held_out.jsonl` those that models are measured on, and `judged.jsonl`
    given answers with their true scores, on which judges are; `people.py` scores answers as people do. All tasks are
    different ones. The same settings and seed give the same files.

    Raises:
      UserError: the folder holds another world.
    """
    marker = folder / "world.json"
    facts = {"seed": seed, **dataclasses.asdict(settings)}
    if marker.exists():
        if changed := differences(read_json(marker), facts):
            raise UserError(f"{folder}: begun with another world ({'; '.join(changed)}); choose a new folder.")
        return
    rng = random.Random(seed)
    draw = _different_tasks(rng)
    s = settings
    answered = _take(draw, s.ift_rows)
    ift = [{"prompt": t.text, "response": human_answer(t, s.answer_error, rng)} for t in answered]
    ift += [_list_row([t.text for t in _take(draw, LISTED)]) for _ in range(s.list_rows)]
    eft = [_judged(t, s, rng) for t in _take(draw, s.eft_rows)]
    held_out = [{"prompt": t.text, "kind": t.kind} for t in _take(draw, s.held_out)]
    # The same answers for every judge, good and bad ones alike.
    judged = [_graded(t, rng) for t in _take(draw, s.held_out)]
    tasks = [{"prompt": t.text} for t in answered]
    for name, rows in {"ift": ift, "tasks": tasks, "eft": eft, "held_out": held_out, "judged": judged}.items():
        write_atomic(folder / f"{name}.jsonl", to_lines(rows))
    write_atomic(folder / "judge.txt", JUDGE_TEMPLATE + "\n")
    write_atomic(folder / "prompts.txt", PROMPT_TEMPLATE + "\n")
    write_atomic(folder / "people.py", PEOPLE.format(noise=s.judge_noise, bias=s.judge_bias, seed=seed))
    make_model(folder / "model", settings, seed)
    write_atomic(marker, json.dumps(facts, indent=2) + "\n")


def _different_tasks(rng: random.Random) -> Callable[[], Task]:
    seen: set[str] = set()

    def draw() -> Task:
        while (task := random_task(rng)).text in seen:
            pass
        seen.add(task.text)
        return task

    return draw


def _take(draw: Callable[[], Task], n: int) -> list[Task]:
    return [draw() for _ in range(n)]


def _list_row(tasks: list[str]) -> Row:
    return {"prompt": PROMPT_TEMPLATE, "response": f"{few_shot_list(tasks[:-1])} {tasks[-1]}"}


def _judged(task: Task, s: WorldSettings, rng: random.Random) -> Row:
    """A judged answer of any quality, so that every score has its share."""
    response = human_answer(task, rng.random(), rng)
    judgement = human_judgement(task, response, s.judge_noise, s.judge_bias, rng)
    return {"prompt": task.text, "response": response, "judgement": judgement}


def _graded(task: Task, rng: random.Random) -> Row:
    """Four answers with their true scores, in the form of ranked data."""
    answers = [human_answer(task, error, rng) for error in (0.1, 0.3, 0.6, 0.9)]
    return {"prompt": task.text, "responses": [{"text": a, "score": true_score(task, a) / 5} for a in answers]}


def make_model(folder: epath.Path, settings: WorldSettings, seed: int) -> None:
    """M0: a Llama with random weights and a tokenizer of this world's words and letters."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=3 * settings.hidden,
        num_layers=settings.layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=settings.hidden // 4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_ids=(tokenizer.vocab["<|end|>"],),
    )
    hf_save.save_pretrained(folder, config, init_params(config, jax.random.key(seed), scale=0.02), tokenizer)


def make_tokenizer():
    """A token for each word of this world, and one for each character beside them; nothing is lost in decoding."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    words = [*KINDS, "mark", "list", "tasks", "Score:"]
    characters = [chr(n) for n in range(32, 127)] + ["\n"]
    known = [*special, *words, *sorted({*characters, *LETTERS}), "<|unknown|>"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(known)}, unk_token="<|unknown|>"))
    pattern = "|".join([*words, r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", chat_template=CHAT_TEMPLATE
    )
