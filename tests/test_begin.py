"""Beginning several trees at once: in one transaction what is free, in order what must be waited for, in no circle."""

import threading

import pytest

from layerstore import errors
from layerstore.verbs.begin import Want, begin
from layerstore.verbs.staging import discard
from storekit import failing_at, observed, states, tree_names


def wants(*keys):
    return [Want(key) for key in keys]


def keys(trees):
    return [tree.content_key for tree in trees]


class Other:
    """Another thread that holds a tree for *key* until it is told to give it up."""

    def __init__(self, handle, key):
        self._begun, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(handle, key))
        self._thread.start()
        assert self._begun.wait(30)

    def _hold(self, handle, key):
        (tree,) = begin(handle, wants(key))
        self._begun.set()
        self._over.wait(60)
        discard(handle, tree)

    def give_up(self):
        self._over.set()
        self._thread.join(60)


@pytest.fixture
def handle(store):
    return store._handle


def test_all_that_are_free_are_begun_in_one_transaction(store, handle, root):
    with observed([]) as passed:
        trees = begin(handle, wants("a", "b", "c"), ordered=True)
    assert keys(trees) == ["a", "b", "c"]
    assert passed.count("txn.begin") == 1
    assert states(store) == ["staging"] * 3
    discard(handle, *trees)
    assert (states(store), tree_names(root, "staging")) == ([], [])


def test_what_comes_after_one_that_somebody_else_makes_is_not_begun_before_it_was_waited_for(store, handle):
    """Else two could hold what the other waits for."""
    other = Other(handle, "b")
    first = begin(handle, wants("a", "b", "c"), ordered=True)
    assert keys(first) == ["a"]
    with pytest.raises(errors.BusyError):
        begin(handle, wants("b", "c"), ordered=True, wait=0.0)
    assert states(store) == ["staging"] * 2, "nothing was begun while that one was waited for"
    other.give_up()
    rest = begin(handle, wants("b", "c"), ordered=True)
    assert keys(rest) == ["b", "c"]
    discard(handle, *first, *rest)


def test_a_thread_that_is_not_in_order_makes_a_tree_of_its_own_rather_than_wait(handle):
    other = Other(handle, "a")
    trees = begin(handle, wants("c", "a"))
    assert keys(trees) == ["c", None]
    other.give_up()
    discard(handle, *trees)


def test_the_same_content_twice_is_made_twice(handle):
    trees = begin(handle, wants("a", "a", "b"), ordered=True)
    assert keys(trees) == ["a", None, "b"]
    assert keys(again := begin(handle, wants("b"), ordered=True)) == [None], "this thread has it already"
    discard(handle, *trees, *again)


def test_a_race_that_is_lost_concerns_that_content_and_what_comes_after_it_only(store, handle, root, armed):
    others, made = [], []

    def quicker(name, when):
        if (name, when) == ("stage.txid", "after"):
            made.append(name)
            if len(made) == 3:   # all have their directories, none its row
                others.append(Other(handle, "b"))

    armed(quicker)
    trees = begin(handle, wants("a", "b", "c"), ordered=True)
    armed(None)
    assert keys(trees) == ["a"]
    assert len(tree_names(root, "staging")) == len(states(store)) == 2, "nothing is left of what was too late"
    others[0].give_up()
    discard(handle, *trees)


def test_a_race_that_is_lost_at_the_first_is_waited_for(handle, armed):
    others = []

    def quicker(name, when):
        if (name, when) == ("stage.txid", "after") and not others:
            others.append(None)
            others[0] = Other(handle, "a")
            threading.Timer(0.3, others[0].give_up).start()

    armed(quicker)
    (tree,) = begin(handle, wants("a"), ordered=True)
    assert tree.content_key == "a"
    discard(handle, tree)


def test_what_became_needless_meanwhile_is_not_begun(handle):
    needed, needless = Want("a"), Want("b", lambda _view: True)
    assert begin(handle, [needless, needed], ordered=True) == [None]
    trees = begin(handle, [needed, needless], ordered=True)
    assert keys(trees) == ["a"]
    discard(handle, *trees)


@pytest.mark.parametrize(("point", "nth"), [("stage.mkdir", 2), ("stage.txid", 2), ("stage.diff", 3), ("txn.begin", 1)])
def test_of_trees_that_could_not_all_be_begun_none_is_left(store, handle, root, point, nth):
    with failing_at(point, "EDQUOT", nth=nth), pytest.raises(errors.NoSpaceError):
        begin(handle, wants("a", "b", "c"), ordered=True)
    assert (states(store), tree_names(root, "staging")) == ([], [])
    assert not handle.held_by_this_thread()
