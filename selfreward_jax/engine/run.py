"""One run of the engine: its cache, and the host's loop between the jitted programs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from selfreward_jax.engine import programs
from selfreward_jax.engine.cache import CachePlan, blocks_for, empty_region, padded_length, resize
from selfreward_jax.engine.layout import REPLICA, put
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.engine.schedule import Request, Sample, Schedule
from selfreward_jax.engine.stopping import find_end

if TYPE_CHECKING:
    from selfreward_jax.engine.generate import Engine

STEPS = 32  # decode steps between two looks at what came out, at most
STEPS_WITH_STOP = 8  # the same where stop strings must be looked for


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sample; where it ends is said in `stopping`.

    Attributes:
      token_ids: as drawn, with the EOS, without those in which a stop string stands.
      text: theirs.
      stop_reason: `eos`, `stop` (a stop string) or `length`.
      logp: of all its tokens under the model itself, in nats.
      drawn: how many were drawn until it ended, a stop string's with them.
      rest: what the first of those has before the stop string.
      read: log-probabilities of the candidates of a `Reading`.
    """

    request: Request
    index: int
    token_ids: tuple[int, ...]
    text: str
    stop_reason: str
    logp: float
    drawn: int
    rest: str = ""
    read: tuple[float, ...] | None = None

    @property
    def up_to_stop(self) -> str:
        """All text before the stop string, also where that begins within a token."""
        return self.text + self.rest


@dataclasses.dataclass(frozen=True)
class Reading:
    """What to do when a sample has ended: go on with given tokens and read the next token's probabilities.

    Attributes:
      feed: from the sample's text to the tokens that follow it; they replace its EOS or stop string.
      candidates: ids whose log-probabilities are read after them.
      longest: the most tokens that `feed` gives.
    """

    feed: Callable[[str], tuple[int, ...]]
    candidates: tuple[int, ...]
    longest: int


def _on_mesh(method):
    """Runs a method under the engine's mesh; not the generators, which would leave it to whoever draws from them."""

    @functools.wraps(method)
    def under(self, *args):
        with jax.set_mesh(self.mesh):
            return method(self, *args)

    return under


def prefill_width(tokens: int, T: int, entries: int) -> int:
    """Prompts of T tokens that a replica runs through the model at a time."""
    return max(1, min(tokens // T, entries))


class EngineRun:
    """Made for one call of the engine, and used up by it."""

    def __init__(
        self,
        engine: "Engine",
        plan: CachePlan,
        schedule: Schedule,
        prefix_length: int,
        settings: SamplingSettings,
        reading: Reading | None,
    ):
        self.engine, self.plan, self.schedule, self.prefix_length = engine, plan, schedule, prefix_length
        self.settings, self.reading = settings, reading
        self.config, self.mesh = engine.config, engine.mesh
        self.eos_ids = engine.model.chat.eos_ids
        self.steps = STEPS_WITH_STOP if settings.stop else STEPS
        self.candidates = np.asarray(reading.candidates if reading else (), np.int32)
        self.feed_width = max(1, reading.longest if reading else 1)
        self.region = functools.partial(
            empty_region, self.config, self.mesh, dtype=engine.cache_dtype, attention=engine.attention
        )

    # Prefill.

    @_on_mesh
    def _share_prefix(self, ids: Sequence[int]) -> None:
        """Runs the shared prefix through the model, once."""
        self.prefix_arg = put(np.array(self.prefix_length, np.int32), self.mesh)
        self.prefix: list = []
        if not self.prefix_length:
            return
        tokens = np.zeros((1, self.plan.prefix), np.int32)
        tokens[0, : self.prefix_length] = ids[: self.prefix_length]
        engine = self.engine
        static: dict[str, Any] = {
            "dtype": engine.dtype, "cache_dtype": engine.cache_dtype, "attention": engine.attention,
        }  # fmt: skip
        args = self.config, engine.weights, put(tokens, self.mesh)
        what = f"the prefill of a shared prefix ({self.plan.prefix} tokens)"
        engine.prepare(what, programs.prefill_prefix, *args, **static)
        self.prefix = programs.prefill_prefix(*args, **static)
        self._count(computed=self.prefix_length, padding=self.plan.prefix - self.prefix_length)

    def _count(self, *, computed: int = 0, shared: int = 0, padding: int = 0) -> None:
        kinds = {"computed": computed, "shared": shared, "padding": padding}
        self.engine.counters.update({f"gen/prefill_tokens_{name}": n for name, n in kinds.items()})

    def _padded(self, request: Request) -> int:
        """Positions that a prompt is padded to; they depend on the prompt alone, and so do its numbers."""
        return padded_length(len(request.prompt_ids) - self.prefix_length, self.engine.length_bucket)

    @_on_mesh
    def _prefill(self, prompts: list, taken: list[list[list[Sample]]]) -> tuple[list, jax.Array, list[list[Sample]]]:
        """Runs the prompts of the taken samples; returns the region, logits [P, V], and the samples by row."""
        T = self._padded(next(group[0].request for groups in taken for group in groups))
        width = self._width(T)
        P = self.engine.replicas * width
        tokens, lengths = np.zeros((P, T), np.int32), np.ones(P, np.int32)
        entries = np.full((self.engine.replicas, width), self.plan.entries, np.int32)
        by_row: list[list[Sample]] = [[] for _ in range(P)]
        for d, groups in enumerate(taken):
            for n, group in enumerate(groups):
                ids = group[0].request.prompt_ids[self.prefix_length :]
                row = d * width + n
                tokens[row, : len(ids)], lengths[row], entries[d, n] = ids, len(ids), group[0].entry
                by_row[row] = group
                self._count(computed=len(ids), padding=T - len(ids), shared=(len(group) - 1) * len(ids))
                self._count(shared=len(group) * self.prefix_length)
        self._count(padding=(P - sum(map(bool, by_row))) * T)
        args = (
            self.config, self.engine.weights, self.prefix, self.prefix_arg, prompts,
            put(tokens, self.mesh, REPLICA), put(lengths, self.mesh, REPLICA), put(entries, self.mesh, REPLICA),
        )  # fmt: skip
        what = f"the prefill of prompts ({P} x {T} tokens)"
        static: dict[str, Any] = {"dtype": self.engine.dtype, "attention": self.engine.attention}
        self.engine.prepare(what, programs.prefill, *args, **static)
        prompts, logits = programs.prefill(*args, **static)
        return prompts, logits, by_row

    def _width(self, T: int) -> int:
        """Prompts of a padded length that a call takes in each replica: always as many, for the sake of every bit."""
        return prefill_width(self.engine.prefill_tokens, T, self.plan.entries)

    def _take(self) -> list[list[list[Sample]]]:
        """The next prompts to prefill, of one padded length, by replica."""
        schedule = self.schedule
        width = self._width(self._padded(schedule.next_up[0].request)) if schedule.next_up else 1
        return schedule.next_prompts(width, self._padded)

    # Sampling.

    def completions(self, prefix_ids: Sequence[int]) -> Iterator[Completion]:
        schedule, plan = self.schedule, self.plan
        self._share_prefix(prefix_ids)
        # What all samples share is computed once, so one sample less shares it.
        self._count(shared=-self.prefix_length)
        blocks = self._prompt_blocks()
        rows = self.engine.replicas
        self.prompts = self.region(blocks=blocks, rows=rows * plan.entries, width=plan.prompt_block)
        self.own = self.region(blocks=1, rows=rows * plan.slots, width=plan.own_block)
        while schedule.unfinished:
            while any(taken := self._take()):
                self._fit_prompts()
                with jax.profiler.TraceAnnotation("prefill"):
                    self.prompts, logits, by_row = self._prefill(self.prompts, taken)
                yield from self._begin(logits, by_row)
            schedule.fill()
            if schedule.running:
                yield from self._decode()

    def _fit_prompts(self) -> None:
        """Lets go of blocks that no prompt needs any more, where that is half of them: each size is a program."""
        blocks = self._prompt_blocks()
        if 2 * blocks <= self.prompts[0].k.shape[0]:
            self.prompts = resize(self.prompts, blocks)

    def _prompt_blocks(self) -> int:
        longest = self.schedule.longest_prompt(self.prefix_length)
        return blocks_for(padded_length(longest, self.engine.length_bucket), self.plan.prompt_block)

    def _begin(self, logits: jax.Array, by_row: list[list[Sample]]) -> Iterator[Completion]:
        """Draws the first token of every sample."""
        keys = np.zeros((len(by_row), self.schedule.seats, 2), np.uint32)
        for row, group in enumerate(by_row):
            for n, sample in enumerate(group):
                keys[row, n] = sample.key
        token, logp = self._first_tokens(logits, keys)
        for row, group in enumerate(by_row):
            for n, sample in enumerate(group):
                self._add(sample, [int(token[row, n])], [float(logp[row, n])])
                if sample.end and not self._feed(sample):
                    self.schedule.release(sample)
                    yield self._completion(sample)
                else:
                    self.schedule.wait(sample)

    @_on_mesh
    def _first_tokens(self, logits: jax.Array, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        banned = self.eos_ids if self.settings.min_new_tokens > 0 else ()
        law = self.settings.law()
        return jax.device_get(programs.first_tokens(logits, put(keys, self.mesh, REPLICA), law, banned=banned))

    def _add(self, sample: Sample, tokens: Sequence[int], logps: Sequence[float]) -> None:
        """New tokens of a sample; where it has ended, no more of them than it keeps."""
        before = len(sample.token_ids)
        sample.token_ids += tokens
        sample.logps += logps
        sample.count = len(sample.token_ids)
        sample.end = find_end(self.engine.model.chat, sample.token_ids, self.settings, before)
        if sample.end:
            del sample.token_ids[sample.end.kept :], sample.logps[sample.end.kept :]
        self.engine.counters["gen/tokens"] += (sample.end.drawn if sample.end else sample.count) - before

    def _feed(self, sample: Sample) -> bool:
        """Begins the reading of a sample that has ended; False if nothing is to be read."""
        if not self.reading:
            return False
        assert sample.end
        kept = len(sample.token_ids) - (sample.end.reason == "eos")
        # The last token drawn is not in the cache yet.
        cached = min(kept, sample.count - 1)
        text = self.engine.model.chat.decode(sample.token_ids)
        sample.fed = [*sample.token_ids[cached:kept], *self.reading.feed(text)]
        sample.count = cached + 1
        return True

    def _completion(self, sample: Sample, read: np.ndarray | None = None) -> Completion:
        assert sample.end
        return Completion(
            sample.request,
            sample.index,
            tuple(sample.token_ids),
            self.engine.model.chat.decode(sample.token_ids),
            sample.end.reason,
            float(np.sum(np.asarray(sample.logps, np.float32), dtype=np.float64)),
            sample.end.drawn,
            sample.end.rest,
            None if read is None else tuple(float(x) for x in read),
        )

    # Decoding.

    def _decode(self) -> Iterator[Completion]:
        """One call of the decode program, and what became of every slot in it."""
        schedule, engine = self.schedule, self.engine
        running = dict(schedule.running)
        with engine.tracer.step("decode"):
            steps, tokens, logps, added, ended, read = self._decode_steps(running)
        engine.counters["gen/decode_steps"] += int(steps)
        engine.counters["gen/slot_steps"] += int(added.sum())
        engine.in_use = (len(running), len(added))
        for (d, slot), sample in sorted(running.items()):
            row = d * schedule.slots + slot
            n = int(added[row])
            if sample.fed is not None:
                sample.fed = sample.fed[n:]
                sample.count += n
                finished = bool(ended[row])
            else:
                self._add(sample, tokens[row, :n].tolist(), logps[row, :n].tolist())
                finished = bool(sample.end) and not self._feed(sample)
            if finished:
                schedule.release(sample)
                yield self._completion(sample, read[row] if self.reading else None)

    @_on_mesh
    def _decode_steps(self, running: dict[tuple[int, int], Sample]) -> tuple[np.ndarray, ...]:
        schedule, engine, settings = self.schedule, self.engine, self.settings
        slots, seats = schedule.arrays(self.prefix_length, self.feed_width)
        longest = max(s.count for s in running.values())
        self._fit_own(longest)
        most = min(self.steps, self.own[0].capacity - longest + 1)
        # A slot that ends with nothing to follow it needn't be looked after before the others end.
        patience = 1 if schedule.starved or self.reading else len(running)
        limits = np.array([most, patience, settings.max_new_tokens, settings.min_new_tokens], np.int32)
        on_rows = lambda x: put(x, self.mesh, REPLICA)  # noqa: E731
        args = (
            self.config, engine.weights, self.prefix, self.prefix_arg, self.prompts, self.own,
            programs.Slots(**{name: on_rows(x) for name, x in slots.items()}),
            programs.Seats(**{name: on_rows(x) for name, x in seats.items()}),
            put(self.candidates, self.mesh), put(limits, self.mesh),
        )  # fmt: skip
        static: dict[str, Any] = {
            "law": settings.law(), "steps": self.steps, "eos_ids": self.eos_ids, "dtype": engine.dtype,
        }  # fmt: skip
        what = (
            f"decoding ({len(slots['token'])} slots x {self.own[0].capacity} tokens, {len(seats['lengths'])} prompts"
            f" x {self.prompts[0].capacity})"
        )
        engine.prepare(what, programs.decode, *args, **static)
        self.own, results = programs.decode(*args, **static)
        return jax.device_get(results)

    def _fit_own(self, longest: int) -> None:
        """Room for at least one more token in every slot; much too much room is given back."""
        width, have = self.plan.own_block, self.own[0].k.shape[0]
        needed = blocks_for(longest, width)
        if needed > have or 4 * needed <= have:
            self.own = resize(self.own, needed)

    # Reading alone.

    @_on_mesh
    def _candidate_logps(self, logits: jax.Array, wanted: jax.Array) -> np.ndarray:
        return np.asarray(programs.candidate_logps(logits, wanted))

    def readings(
        self, prefix_ids: Sequence[int], candidates: tuple[int, ...]
    ) -> Iterator[tuple[Request, tuple[float, ...]]]:
        self._share_prefix(prefix_ids)
        self._count(shared=-self.prefix_length)
        wanted = put(np.asarray(candidates, np.int32), self.mesh)
        while any(taken := self._take()):
            with self.engine.tracer.step("prefill"):
                _, logits, by_row = self._prefill([], taken)
                logps = self._candidate_logps(logits, wanted)
            for row, group in enumerate(by_row):
                for sample in group:
                    self.schedule.release(sample)
                    yield sample.request, tuple(float(x) for x in logps[row])
