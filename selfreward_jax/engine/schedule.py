"""Which request runs where: slots, entries and seats, decided on the host from nothing but what has come out so far.

Every process of a run sees the same results and so takes the same decisions; no message about them is needed. A
finished sample's slot goes to the next sample at once; a prompt's entry is given up with the last of its samples.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from selfreward_jax.engine.stopping import End


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue; `id` enters the random keys, so it must be the request's own."""

    id: str
    prompt_ids: tuple[int, ...]


def sample_key(seed: int, purpose: str, request_id: str, index: int) -> np.ndarray:
    """64 bits of randomness for one sample, uint32 [2]."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{request_id}\0{index}".encode()).digest()
    return np.frombuffer(digest[:8], "<u4").astype(np.uint32)


def shared_prefix(requests: Sequence[Request]) -> int:
    """Tokens with which all requests begin; each keeps at least one of its own."""
    if len(requests) < 2:
        return 0
    first, last = min(r.prompt_ids for r in requests), max(r.prompt_ids for r in requests)
    most = min(len(r.prompt_ids) for r in requests) - 1
    return next((n for n in range(most) if first[n] != last[n]), most)


@dataclasses.dataclass
class Sample:
    """One sample in the making, at its seat of its prompt's entry, and in a slot once there is one."""

    request: Request
    index: int
    key: np.ndarray
    replica: int = 0
    entry: int = 0
    seat: int = 0
    slot: int = -1
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    end: End | None = None
    fed: list[int] | None = None  # what is still to be fed, once the sample itself has ended
    count: int = 0  # tokens in the slot, the last of them not yet in the cache


class Schedule:
    """Bookkeeping of `replicas` times `slots` slots and `entries` entries."""

    def __init__(self, replicas: int, slots: int, entries: int, seats: int, work: Iterable[list[Sample]]):
        """`work` gives the samples of each request, longest prompts first; it is drawn from as slots ask for it."""
        self.replicas, self.slots, self.entries, self.seats = replicas, slots, entries, seats
        self._work = iter(work)
        self.next_up = next(self._work, None)
        self.waiting: list[collections.deque[Sample]] = [collections.deque() for _ in range(replicas)]
        self._free_slots = [list(range(slots))[::-1] for _ in range(replicas)]
        self._free_entries = [list(range(entries))[::-1] for _ in range(replicas)]
        self._left: dict[tuple[int, int], int] = {}  # samples that an entry still has
        self._lengths: dict[tuple[int, int], int] = {}  # of the prompts in the entries
        self.running: dict[tuple[int, int], Sample] = {}

    @property
    def unfinished(self) -> bool:
        return bool(self.next_up or self.running or any(self.waiting))

    @property
    def starved(self) -> bool:
        """Whether a slot that becomes free would have something to do."""
        return bool(self.next_up or any(self.waiting))

    def next_prompts(self, most: int, alike) -> list[list[list[Sample]]]:
        """Takes the next requests to prefill, by replica: none while no slot asks for any, else all there is room for.

        Args:
          most: requests a replica may take at once.
          alike: of a request, a value that all those taken together must share.
        """
        taken: list[list[list[Sample]]] = [[] for _ in range(self.replicas)]
        if all(len(w) >= len(free) for w, free in zip(self.waiting, self._free_slots, strict=True)):
            return taken
        kind = alike(self.next_up[0].request) if self.next_up else None
        progress = True
        while progress:
            progress = False
            for d in range(self.replicas):
                group = self.next_up
                if not group or len(taken[d]) >= most or alike(group[0].request) != kind:
                    continue
                if not self._free_entries[d]:
                    continue
                self.next_up = next(self._work, None)
                entry = self._free_entries[d].pop()
                self._left[d, entry], self._lengths[d, entry] = len(group), len(group[0].request.prompt_ids)
                for seat, sample in enumerate(group):
                    sample.replica, sample.entry, sample.seat = d, entry, seat
                taken[d].append(group)
                progress = True
        return taken

    def wait(self, sample: Sample) -> None:
        """A sample whose first token is drawn asks for a slot."""
        self.waiting[sample.replica].append(sample)

    def fill(self) -> None:
        """Gives every free slot to a waiting sample."""
        for d in range(self.replicas):
            while self._free_slots[d] and self.waiting[d]:
                sample = self.waiting[d].popleft()
                sample.slot = self._free_slots[d].pop()
                self.running[d, sample.slot] = sample

    def release(self, sample: Sample) -> None:
        """A sample is finished: its slot is free, and so is its entry if it was the last there."""
        d = sample.replica
        if sample.slot >= 0:
            del self.running[d, sample.slot]
            self._free_slots[d].append(sample.slot)
        self._left[d, sample.entry] -= 1
        if not self._left[d, sample.entry]:
            del self._left[d, sample.entry], self._lengths[d, sample.entry]
            self._free_entries[d].append(sample.entry)

    def longest_prompt(self, prefix: int) -> int:
        """Tokens after the prefix of the longest prompt that is in flight or still to come."""
        coming = [len(self.next_up[0].request.prompt_ids)] if self.next_up else []
        return max([*self._lengths.values(), *coming], default=prefix + 1) - prefix

    def arrays(self, prefix: int, feed_width: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What the decode program is told, as fields of `programs.Slots` and `programs.Seats`."""
        R = self.replicas * self.slots
        slots = {
            "token": np.zeros(R, np.int32),
            "count": np.ones(R, np.int32),
            "base": np.ones(R, np.int32),
            "key": np.zeros((R, 2), np.uint32),
            "live": np.zeros(R, bool),
            "feed": np.zeros((R, feed_width), np.int32),
            "to_feed": np.full(R, -1, np.int32),
        }
        seats = {
            "slot_of": np.zeros((self.replicas, self.entries * self.seats), np.int32),
            "seat_of": np.zeros((self.replicas, self.slots), np.int32),
            "lengths": np.zeros(self.replicas * self.entries, np.int32),
        }
        for (d, slot), s in self.running.items():
            row = d * self.slots + slot
            slots["count"][row], slots["base"][row] = s.count, len(s.request.prompt_ids)
            slots["key"][row], slots["live"][row] = s.key, True
            if s.fed is None:
                slots["token"][row] = s.token_ids[-1]
            else:
                slots["token"][row], rest = s.fed[0], s.fed[1:]
                slots["feed"][row, : len(rest)], slots["to_feed"][row] = rest, len(rest)
            place = s.entry * self.seats + s.seat
            seats["slot_of"][d, place], seats["seat_of"][d, slot] = slot, place
            seats["lengths"][d * self.entries + s.entry] = len(s.request.prompt_ids) - prefix
        return slots, seats
