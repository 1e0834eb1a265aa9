"""The order of work: hosts take turns, pauses are kept, and no thread waits while there is work."""

import random
import threading
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.stages.download.hosts import LONGEST_PAUSE, MOST_REPEATS, Job, Schedule


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def schedule(hosts: str, at_once: int, clock: Clock | None = None) -> Schedule:
    jobs = [Job(place, f"http://{host}/{place}", host) for place, host in enumerate(hosts)]
    return Schedule(jobs, at_once, clock or Clock())


def test_hosts_take_turns_and_rows_of_one_stay_in_order() -> None:
    work = schedule("aaaabbc", at_once=10)
    assert [work.take().place for _ in range(7)] == [0, 4, 6, 1, 5, 2, 3]


def test_a_busy_host_is_passed_over_while_others_have_work() -> None:
    work = schedule("aaaaabc", at_once=2)
    taken = [work.take() for _ in range(4)]
    assert Counter(job.host for job in taken) == {"a": 2, "b": 1, "c": 1}
    work.done(taken[0])
    assert work.take().host == "a"


def test_a_pause_holds_back_the_host_and_nobody_else() -> None:
    clock = Clock()
    work = schedule("aaabb", at_once=1, clock=clock)
    first = work.take()
    assert work.postpone(first, 5.0)
    second = work.take()
    assert second.host == "b"
    work.done(second)
    work.done(work.take())
    clock.now += 5.0
    again = work.take()
    assert (again.place, again.repeats) == (0, 1)


def test_a_host_on_the_list_pauses_too_when_it_asks_meanwhile() -> None:
    clock = Clock()
    work = schedule("aaab", at_once=2, clock=clock)
    assert work.postpone(work.take(), 3.0)  # "a" stands on the list already
    assert work.take().host == "b"
    clock.now += 3.0
    assert [work.take().place for _ in range(2)] == [0, 1]


def test_pauses_have_bounds() -> None:
    clock = Clock()
    work = schedule("aabb", at_once=4, clock=clock)
    a, b = work.take(), work.take()
    assert not work.postpone(a, LONGEST_PAUSE + 1)
    b.end = clock.now + 2.0
    assert not work.postpone(b, 2.0)  # its own time is over by then
    for _ in range(MOST_REPEATS):
        assert work.postpone(a, 1.0)
        clock.now += 1.0
        a = next(job for job in iter(work.take, None) if job.place == 0)
    assert not work.postpone(a, 1.0)


def test_a_hosts_pauses_are_bounded_together() -> None:
    clock = Clock()
    work = schedule("a" * 100, at_once=1, clock=clock)
    paused = 0
    while work.postpone(job := work.take(), 7.0):
        clock.now += 7.0
        work.done(work.take())
        paused += 1
    assert job.place >= 0
    assert paused == LONGEST_PAUSE // 7


def test_a_redirect_takes_a_slot_of_the_host_that_it_leads_to() -> None:
    clock = Clock()
    work = schedule("aabb", at_once=1, clock=clock)
    a, b = work.take(), work.take()
    a.end = 200.0

    def free() -> None:
        clock.now += 4.0
        work.done(b)

    threading.Timer(0.1, free).start()
    assert work.move(a, "b") == 4.0
    assert (a.host, a.end) == ("b", 204.0)  # it waited for our own limit, and gets the time back
    assert work.take().host == "a"  # its first host has a slot again, the other one has none
    work.done(a)
    assert work.take().host == "b"
    assert work.move(b, "elsewhere") == 0.0
    assert work.move(b, "elsewhere") == 0.0  # it is there already


@settings(max_examples=30, deadline=None)
@given(st.text("abcd", min_size=1, max_size=60), st.integers(1, 4), st.integers(1, 8))
def test_every_row_is_done_once_and_no_host_has_more_than_its_share(
    hosts: str, at_once: int, threads: int
) -> None:
    jobs = [Job(place, "", host) for place, host in enumerate(hosts)]
    work = Schedule(jobs, at_once)
    active: Counter[str] = Counter()
    done: list[int] = []
    most = 0
    lock = threading.Lock()

    def bring_to_its_end(rng: random.Random) -> None:
        nonlocal most
        while True:
            job = work.take()
            host = job.host
            with lock:
                active[host] += 1
                most = max(most, active[host])
            with lock:
                active[host] -= 1
            if rng.random() < 0.3 and work.postpone(job, 0.0001):
                continue
            work.done(job)
            done.append(job.place)
            return

    def worker(number: int) -> None:
        rng = random.Random(number)
        for _ in range(number, len(hosts), threads):
            bring_to_its_end(rng)

    workers = [threading.Thread(target=worker, args=(n,)) for n in range(threads)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert sorted(done) == list(range(len(hosts)))
    assert most <= at_once
