"""Every rule of who trains together, with a clock in the hands of the test."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fatwood.errors import OptionError
from fatwood.exchange.membership import Applicant, Evicted, Held, Membership, Notice, Seated

START, REJOIN, GRACE = 60.0, 30.0, 0.2


class Job:
    """A membership, its clock and the actions since the last look."""

    def __init__(self, workers, min_workers=None):
        self.now = 1000.0
        self.membership = Membership(
            workers, min_workers=min_workers, start_seconds=START, rejoin_seconds=REJOIN
        )
        self._actions = []

    def join(self, member, rank, *, ready=True, stateless=False):
        applicant = Applicant(member, rank, f"host-{member}", 7000 + member, stateless)
        refusal = self.membership.join(applicant, self.now)
        if ready and refusal is None:
            self.membership.ready(member)
        self.take()
        return refusal

    def start(self):
        """All ranks, each held by the member of the same number, who report the first view as synced."""
        for rank in range(self.membership._workers):
            self.join(rank, rank)
        self.sync(0)
        self.look()

    def sync(self, completed):
        for member in list(self.membership._view):
            self.membership.synced(member, self.membership.number, completed)
            self.take()

    def ready(self, member):
        self.membership.ready(member)
        self.take()

    def leave(self, *members):
        for member in members:
            self.membership.leave(member)
        self.take()

    def suspect(self, member, accused, number=None):
        self.membership.suspect(member, number or self.membership.number, accused, self.now)
        self.take()

    def waiting(self, member, number=None):
        self.membership.waiting(member, number or self.membership.number, self.now)
        self.take()

    def after(self, seconds):
        self.now += seconds
        self.take()

    def take(self):
        self._actions += self.membership.take(self.now)

    def look(self):
        actions, self._actions = self._actions, []
        return actions

    def views(self):
        """The views since the last look: number, members by rank, newcomers, abandoned."""
        seated = [action for action in self.look() if isinstance(action, Seated)]
        return [(s.number, [(a.rank, a.member) for a in s.members], s.newcomers, s.abandoned) for s in seated]


def _kinds(actions):
    return [action.kind if isinstance(action, Notice) else type(action).__name__ for action in actions]


# 1: the first view


def test_the_first_view_begins_when_every_rank_is_ready():
    job = Job(3)
    job.join(10, 2)
    job.join(11, 0)
    job.join(12, 1, ready=False)
    assert job.look() == []
    assert not job.membership.started
    job.ready(12)
    seated, notice = job.look()
    assert (seated.number, seated.newcomers, seated.abandoned) == (1, (), ())
    assert [(a.rank, a.member, a.host, a.port) for a in seated.members] == [
        (0, 11, "host-11", 7011),
        (1, 12, "host-12", 7012),
        (2, 10, "host-10", 7010),
    ]
    assert (notice.kind, notice.member) == ("view", None)
    assert notice.body == {
        "number": 1,
        "ranks": [0, 1, 2],
        "members": [11, 12, 10],
        "newcomers": [],
        "abandoned": [],
    }
    assert job.membership.started
    assert job.membership.next_deadline() is None


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_does_not_exist_is_refused(rank):
    job = Job(2)
    assert str(rank) in job.join(0, rank)
    assert job.membership.next_deadline() is None


def test_without_min_workers_the_missing_are_named_when_the_time_is_over():
    job = Job(3)
    job.after(500)  # the clock starts with the first member
    job.join(0, 1)
    assert job.membership.next_deadline() == job.now + START
    job.after(START - 0.1)
    job.join(1, 2, ready=False)  # not ready is not there
    assert job.look() == []
    job.after(0.1)
    (notice,) = job.look()
    assert (notice.kind, notice.body) == ("missing", {"ranks": [0, 2]})
    assert job.membership.ended
    job.join(2, 0)
    job.ready(1)
    job.after(START)
    assert job.look() == []
    assert job.membership.next_deadline() is None


def test_with_min_workers_it_starts_with_as_many_when_the_time_is_over():
    job = Job(4, min_workers=2)
    job.join(0, 3)
    job.join(1, 1)
    assert job.look() == []
    job.after(START)
    assert job.views() == [(1, [(1, 1), (3, 0)], (), ())]
    job.join(2, 0)
    assert job.views() == [(2, [(0, 2), (1, 1), (3, 0)], (0,), ())]


def test_with_min_workers_all_that_come_early_are_waited_for_no_longer():
    job = Job(2, min_workers=1)
    job.join(0, 0)
    assert job.views() == []
    job.join(1, 1)
    assert job.views() == [(1, [(0, 0), (1, 1)], (), ())]


def test_too_few_at_the_start_are_missing_also_with_min_workers():
    job = Job(3, min_workers=2)
    job.join(0, 1)
    job.after(START)
    (notice,) = job.look()
    assert (notice.kind, notice.body) == ("missing", {"ranks": [0, 2]})


def test_who_leaves_before_the_start_is_replaced_by_the_next_of_its_rank():
    job = Job(2)
    job.join(0, 0)
    job.join(1, 0)
    job.leave(0)
    job.join(2, 1)
    assert job.views() == [(1, [(0, 1), (1, 2)], (), ())]


def test_those_without_a_state_start_as_newcomers_and_only_beside_one_with_a_state():
    job = Job(2)
    job.join(0, 0, stateless=True)
    job.join(1, 1)
    assert job.views() == [(1, [(0, 0), (1, 1)], (0,), ())]
    helpless = Job(2)
    helpless.join(0, 0, stateless=True)
    helpless.join(1, 1, stateless=True)
    helpless.after(START)
    assert _kinds(helpless.look()) == ["missing"]


# 2: changes


def test_a_lost_member_leaves_at_once_and_a_replacement_is_a_newcomer():
    job = Job(3)
    job.start()
    job.leave(1)
    assert job.views() == [(2, [(0, 0), (2, 2)], (), ())]
    job.join(7, 1, ready=False)
    assert job.views() == []
    job.ready(7)
    assert job.views() == [(3, [(0, 0), (1, 7), (2, 2)], (1,), ())]
    job.leave(0)  # before 7 has its state: it stays a newcomer
    assert job.views() == [(4, [(1, 7), (2, 2)], (1,), ())]
    job.membership.synced(7, 4, 20)
    job.leave(2)
    assert job.views() == [(5, [(1, 7)], (), ())]


def test_several_losses_between_two_looks_make_one_view():
    job = Job(4)
    job.start()
    job.leave(0, 3)
    assert job.views() == [(2, [(1, 1), (2, 2)], (), ())]


def test_a_spare_waits_and_the_first_that_came_takes_the_rank_over():
    job = Job(2)
    job.start()
    job.join(5, 1)
    (notice,) = job.look()
    assert (notice.kind, notice.member.member, notice.member.rank) == ("spare", 5, 1)
    job.join(6, 1)
    assert _kinds(job.look()) == ["spare"]
    job.ready(5)
    assert job.look() == []  # it is told once
    job.leave(1)
    assert job.views() == [(2, [(0, 0), (1, 5)], (1,), ())]
    job.leave(6)  # a spare that goes is not missed
    assert job.look() == []


def test_a_second_of_a_rank_before_the_start_learns_with_the_first_view_that_it_is_a_spare():
    job = Job(2)
    job.join(0, 0)
    job.join(1, 0)
    assert job.look() == []
    job.join(2, 1)
    actions = job.look()
    assert _kinds(actions) == ["Seated", "view", "spare"]
    assert actions[2].member.member == 1


def test_who_is_not_ready_is_not_seated():
    job = Job(2)
    job.start()
    job.join(5, 1, ready=False)
    job.leave(1)
    assert job.views() == [(2, [(0, 0)], (), ())]


# 3: fewer than min_workers


def test_too_few_are_held_until_enough_are_back():
    job = Job(3, min_workers=2)
    job.start()
    job.leave(0)
    assert job.views() == [(2, [(1, 1), (2, 2)], (), ())]
    job.leave(1)
    held, notice = job.look()
    assert isinstance(held, Held)
    assert (held.number, [a.member for a in held.members]) == (3, [2])
    assert (notice.kind, notice.body) == ("held", {"ranks": [2], "min_workers": 2})
    assert job.membership.next_deadline() == job.now + REJOIN
    job.after(REJOIN - 1)
    job.suspect(2, 1)  # who holds cannot suspect
    assert job.look() == []
    job.join(9, 1)
    assert job.views() == [(3, [(1, 9), (2, 2)], (1,), ())]
    assert job.membership.next_deadline() is None


def test_the_held_starve_when_too_few_come_back():
    job = Job(3, min_workers=3)
    job.start()
    job.leave(0, 1)
    job.look()
    job.join(9, 0, ready=False)
    job.after(REJOIN)
    (notice,) = job.look()
    assert (notice.kind, notice.body) == ("starved", {"ranks": [0, 1], "seconds": REJOIN})
    assert job.membership.ended


@pytest.mark.parametrize("min_workers", [1, 3, None])
def test_members_that_get_ready_are_waited_for_as_long_as_they_live(min_workers):
    job = Job(3, min_workers=min_workers)
    job.start()
    job.leave(0)
    job.look()
    job.waiting(1)
    job.join(9, 0, ready=False)
    for _ in range(3):  # it has many rows to read
        job.after(REJOIN)
        assert job.look() == []
    job.leave(9)
    job.after(REJOIN)
    if min_workers == 1:
        assert job.views() == [(3, [(1, 1), (2, 2)], (), (0,))]
    else:
        (notice,) = job.look()
        assert (notice.kind, notice.body["ranks"]) == ("starved", [0])


def test_without_min_workers_one_goes_on():
    job = Job(3)
    job.start()
    job.leave(0, 1)
    assert job.views() == [(2, [(2, 2)], (), ())]


# 4: broken connections


def test_a_suspicion_is_tried_again_with_the_same_members_after_a_moment():
    job = Job(3)
    job.start()
    job.suspect(0, 2)
    assert job.look() == []
    assert job.membership.next_deadline() == job.now + GRACE
    job.after(GRACE / 2)
    job.suspect(1, 2)  # does not put it off
    job.after(GRACE / 2)
    assert job.views() == [(2, [(0, 0), (1, 1), (2, 2)], (), ())]
    assert job.membership.next_deadline() is None


def test_an_accused_that_turns_out_to_be_gone_is_a_plain_loss():
    job = Job(3)
    job.start()
    job.suspect(0, 2)
    job.leave(2)
    assert job.views() == [(2, [(0, 0), (1, 1)], (), ())]
    job.after(GRACE)
    assert job.look() == []


@pytest.mark.parametrize("gone", [0, 1])
def test_a_loss_that_is_seen_together_with_the_verdict_explains_it(gone):
    job = Job(3)
    job.start()
    job.suspect(0, 1)
    job.after(GRACE)
    job.suspect(0, 1)
    job.look()
    job.now += GRACE  # the timer is late, and the loss comes first
    job.leave(gone)
    assert job.views() == [(3, [(r, r) for r in range(3) if r != gone], (), ())]


def test_who_cannot_be_reached_in_the_second_try_either_is_evicted():
    job = Job(3)
    job.start()
    job.suspect(0, 1)
    job.after(GRACE)
    assert len(job.views()) == 1
    job.suspect(0, 1)
    job.suspect(2, 1)
    job.suspect(1, 0)
    job.after(GRACE)
    evicted, seated, notice = job.look()
    assert isinstance(evicted, Evicted)
    assert evicted.member.member == 1
    assert "2 other workers cannot reach it" in evicted.reason
    assert [a.member for a in seated.members] == [0, 2]
    assert notice.kind == "view"
    assert job.membership.ranks == (0, 2)


def test_when_two_accuse_each_other_one_goes_on():
    job = Job(2)
    job.start()
    for _ in range(2):
        job.look()
        job.suspect(0, 1)
        job.suspect(1, 0)
        job.after(GRACE)
    evicted, seated, _ = job.look()
    assert evicted.member.rank == 1
    assert [a.member for a in seated.members] == [0]


def test_a_round_between_two_suspicions_means_that_trying_again_did_help():
    job = Job(2)
    job.start()
    for completed in (10, 20, 30):
        job.sync(completed)
        job.suspect(0, 1)
        job.after(GRACE)
        assert len(job.views()) == 1


def test_a_replacement_is_not_blamed_for_the_one_before():
    job = Job(2)
    job.start()
    job.suspect(0, 1)
    job.after(GRACE)
    job.leave(1)
    job.join(5, 1)
    job.look()
    job.suspect(0, 1)
    job.after(GRACE)
    assert job.views() == [(5, [(0, 0), (1, 5)], (1,), ())]


@pytest.mark.parametrize("accused", [None, 7])
def test_who_cannot_name_whom_it_lost_is_evicted_in_the_end(accused):
    job = Job(2)
    job.start()
    job.suspect(0, accused)
    job.after(GRACE)
    assert len(job.views()) == 1
    job.suspect(0, accused)
    job.after(GRACE)
    evicted, seated, _ = job.look()
    assert evicted.member.rank == 0
    assert "it cannot reach the others" in evicted.reason
    assert [a.member for a in seated.members] == [1]


def test_suspicions_of_views_that_are_over_and_of_outsiders_count_for_nothing():
    job = Job(2)
    job.start()
    job.join(5, 1)
    job.leave(1)
    job.look()
    assert job.membership.number == 2
    job.suspect(0, 1, number=1)
    job.suspect(0, 1, number=3)
    job.join(6, 1)
    job.look()
    job.suspect(6, 0)  # a spare
    assert job.membership.next_deadline() is None


# 5: only missing ranks have rows left


def test_without_min_workers_the_seated_starve_for_missing_rows():
    job = Job(2)
    job.start()
    job.leave(1)
    job.look()
    job.waiting(0)
    assert job.membership.next_deadline() == job.now + REJOIN
    job.after(REJOIN / 2)
    job.waiting(0)  # does not put it off
    job.after(REJOIN / 2)
    (notice,) = job.look()
    assert (notice.kind, notice.body) == ("starved", {"ranks": [1], "seconds": REJOIN})


def test_with_min_workers_missing_rows_are_abandoned_until_their_rank_is_back():
    job = Job(3, min_workers=1)
    job.start()
    job.leave(1, 2)
    job.look()
    job.waiting(0)
    job.after(REJOIN)
    assert job.views() == [(3, [(0, 0)], (), (1, 2))]
    assert job.membership.next_deadline() is None
    job.join(9, 2)
    assert job.views() == [(4, [(0, 0), (2, 9)], (2,), (1,))]
    job.leave(9)
    assert job.views() == [(5, [(0, 0)], (), (1,))]  # its rows are waited for again


def test_whoever_comes_back_in_time_ends_the_wait():
    job = Job(2, min_workers=1)
    job.start()
    job.leave(1)
    job.waiting(0)
    job.after(REJOIN - 1)
    job.join(9, 1)
    job.look()
    job.after(REJOIN)
    assert job.look() == []


def test_a_wait_of_a_view_that_is_over_counts_for_nothing():
    job = Job(2)
    job.start()
    job.leave(1)
    job.waiting(0, number=1)
    assert job.membership.next_deadline() is None


# 6: the end


@pytest.mark.parametrize("how", ["it cannot go on", "it is lost too", "it never came in"])
def test_without_anybody_who_knows_the_state_the_job_is_extinct(how):
    job = Job(2)
    job.start()
    job.sync(41)
    job.leave(1)
    job.join(5, 1, ready=how != "it never came in")
    job.look()
    job.leave(0)
    if how == "it cannot go on":
        assert job.look() == []  # 5 may just have got the state
        job.suspect(5, 0)
    elif how == "it is lost too":
        job.leave(5)
    (notice,) = job.look()
    assert (notice.kind, notice.body) == ("extinct", {"completed": 41})
    assert job.membership.ended


def test_a_newcomer_that_got_the_state_before_the_last_one_was_lost_carries_the_job_on():
    job = Job(2)
    job.start()
    job.leave(1)
    job.join(5, 1)
    job.look()
    job.leave(0)
    job.join(6, 0)  # helps nobody before 5 has spoken
    assert job.look() == []
    job.membership.synced(5, 3, 12)
    job.take()
    assert job.views() == [(4, [(0, 6), (1, 5)], (0,), ())]


def test_a_newcomer_that_has_synced_carries_the_job_on():
    job = Job(2)
    job.start()
    job.leave(1)
    job.join(5, 1)
    job.look()
    job.membership.synced(5, 3, 12)
    job.leave(0)
    assert job.views() == [(4, [(1, 5)], (), ())]


def test_extinct_goes_before_held():
    job = Job(2, min_workers=2)
    job.start()
    job.leave(0, 1)
    assert _kinds(job.look()) == ["extinct"]


def test_after_finish_nobody_is_missed():
    job = Job(2, min_workers=2)
    job.start()
    job.suspect(0, 1)
    job.membership.finish()
    job.leave(1)
    job.suspect(0, 1)
    job.waiting(0)
    job.join(8, 1)
    job.after(1000)
    assert [kind for kind in _kinds(job.look()) if kind != "spare"] == []
    assert job.membership.next_deadline() is None


@pytest.mark.parametrize(("workers", "min_workers"), [(0, None), (2, 0), (2, 3)])
def test_numbers_that_cannot_work_are_refused(workers, min_workers):
    with pytest.raises(OptionError, match="min_workers"):
        Job(workers, min_workers)


# laws, whatever happens

_INPUTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["join", "join", "ready", "leave", "suspect", "suspect", "synced", "waiting", "tick"]
        ),
        st.integers(0, 11),
        st.integers(0, 3),
        st.sampled_from([0.0, 0.1, GRACE, 5.0, REJOIN, START]),
    ),
    max_size=80,
)


@given(inputs=_INPUTS, workers=st.integers(1, 3), floor=st.integers(0, 3), early=st.booleans())
@settings(max_examples=400, deadline=None)
def test_laws_of_any_history(inputs, workers, floor, early):
    job = Job(workers, min(floor, workers) or None)
    membership = job.membership
    if early:
        for rank in range(workers):
            job.join(100 + rank, rank)
    alive = {100 + rank for rank in range(workers)} if early else set()
    job.look()
    evicted, announced, ends, completed = set(), membership.number, 0, 0
    for what, member, rank, seconds in inputs:
        seated = sorted(membership._view)
        if seated and what in ("leave", "suspect", "synced", "waiting"):
            member = seated[member % len(seated)]
        if what == "join" and member not in alive | evicted:
            if job.join(member, rank, ready=rank % 2 == 0) is None:
                alive.add(member)
        elif what == "ready" and member in alive:
            job.ready(member)
        elif what == "leave":
            alive.discard(member)
            job.leave(member)
        elif what == "suspect":
            job.suspect(member, None if rank == 3 else rank)
        elif what == "synced":
            completed += 1
            membership.synced(member, membership.number, completed)
            job.take()
        elif what == "waiting":
            job.waiting(member)
        job.after(seconds)
        for action in job.look():
            assert not ends or action.kind == "spare", "nothing is decided after the end"
            if isinstance(action, Seated):
                ranks = [a.rank for a in action.members]
                assert ranks == sorted(set(ranks))
                assert {a.member for a in action.members} <= alive
                assert action.number > announced
                assert set(action.newcomers) < set(ranks)  # somebody has the state
                assert not set(action.abandoned) & set(ranks)
                assert len(ranks) >= (min(floor, workers) or 1)
                announced = action.number
            elif isinstance(action, Held):
                assert action.number > announced
            elif isinstance(action, Evicted):
                alive.remove(action.member.member)
                evicted.add(action.member.member)
            elif action.kind in ("missing", "starved", "extinct"):
                ends += 1
        due = membership.next_deadline()
        assert due is None or due > job.now, "a deadline that has passed would be served for ever"
        assert membership.ended == bool(ends)
