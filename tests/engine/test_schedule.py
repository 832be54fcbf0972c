"""Slots and entries: every sample runs once, a free slot never waits, and nothing is given to two at a time."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.engine.schedule import Request, Sample, Schedule, sample_key


def samples(lengths: list[int], n: int) -> list[list[Sample]]:
    requests = [Request(f"r{i}", (0,) * length) for i, length in enumerate(sorted(lengths, reverse=True))]
    return [[Sample(r, k, sample_key(0, "", r.id, k)) for k in range(n)] for r in requests]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_every_sample_runs_once_and_no_slot_or_seat_is_held_by_two(
    lengths: list[int], n: int, replicas: int, slots: int, entries: int, most: int, rng: random.Random
):
    work = samples(lengths, n)
    schedule = Schedule(replicas, slots, entries, n, iter(work))
    finished = []
    for _ in range(10_000):
        if not schedule.unfinished:
            break
        while any(taken := schedule.next_prompts(most, lambda r: len(r.prompt_ids) // 8)):
            groups = [g for groups in taken for g in groups]
            assert len({len(g[0].request.prompt_ids) // 8 for g in groups}) == 1
            assert all(len(groups) <= most for groups in taken)
            for group in groups:
                for sample in group:
                    sample.token_ids, sample.count = [1], 1
                    if rng.random() < 0.1:  # ended with its first token, before it had a slot
                        schedule.release(sample)
                        finished.append(sample)
                    else:
                        schedule.wait(sample)
        schedule.fill()
        running = list(schedule.running.values())
        assert len({(s.replica, s.slot) for s in running}) == len(running)
        assert len({(s.replica, s.entry, s.seat) for s in running}) == len(running)
        for d in range(replicas):
            idle = slots - sum(s.replica == d for s in running)
            assert not (idle and schedule.waiting[d])
        for sample in rng.sample(running, rng.randint(min(1, len(running)), len(running))):
            schedule.release(sample)
            finished.append(sample)
    assert sorted((s.request.id, s.index) for s in finished) == sorted((s.request.id, s.index) for g in work for s in g)
    assert sorted(sum(schedule._free_slots, [])) == sorted([*range(slots)] * replicas)
    assert sorted(sum(schedule._free_entries, [])) == sorted([*range(entries)] * replicas)


def test_what_the_program_is_told_points_from_slots_to_seats_and_back():
    schedule = Schedule(2, 3, 2, 2, iter(samples([9, 7, 5, 3], 2)))
    while any(taken := schedule.next_prompts(1, lambda r: 0)):
        for groups in taken:
            for sample in (s for group in groups for s in group):
                sample.token_ids, sample.count = [10 + sample.index], 1
                schedule.wait(sample)
    schedule.fill()
    slots, seats = schedule.arrays(prefix=2, feed_width=1)
    assert slots["live"].sum() == len(schedule.running) == 6
    for (d, slot), s in schedule.running.items():
        place = seats["seat_of"][d, slot]
        assert seats["slot_of"][d, place] == slot and place == s.entry * 2 + s.seat
        assert seats["lengths"][d * 2 + s.entry] == len(s.request.prompt_ids) - 2
        assert slots["token"][d * 3 + slot] == s.token_ids[-1]
        assert slots["base"][d * 3 + slot] == len(s.request.prompt_ids)


def test_keys_depend_on_all_that_they_should_and_on_nothing_else():
    given_ = [(0, "p", "r", 0), (1, "p", "r", 0), (0, "q", "r", 0), (0, "p", "s", 0), (0, "p", "r", 1)]
    keys = [tuple(sample_key(*g)) for g in given_]
    assert len(set(keys)) == len(keys)
    assert tuple(sample_key(0, "p", "r", 0)) == keys[0]
    assert len({tuple(sample_key(0, "", str(n), 0)) for n in range(100_000)}) == 100_000


def test_work_is_drawn_only_as_slots_ask_for_it():
    drawn = 0

    def work():
        nonlocal drawn
        for group in samples([5] * 1000, 1):
            drawn += 1
            yield group

    schedule = Schedule(1, 4, 6, 1, work())
    schedule.next_prompts(2, lambda r: 0)
    assert drawn == 3  # two, and the one that comes next
