"""How the tests are dealt out to several processes (``make test``; pytest-xdist), and what may run beside what.

A test module is one piece of work: its tests run in one process, in their order, so that what it makes once is made once.
Every module may run beside every other, rigs with two workers of their own included. It needs these rules, and they are
the reason why there is no list of modules that must run alone:

* What a test looks at is its own: a store in a directory of its own, its own processes, descriptors, mounts (in a mount
  namespace of their own) and loop devices (asked for, never named). Nobody counts what the whole machine does.
* Nothing is measured by the clock. A limit in seconds stands only where a mistake would be waited for without end, and
  is longer than any load could make of it.

A process that dies costs the run: the test it died in has failed and is not tried again, the others of its module go on in
a new process; and if it died between two tests, the run fails all the same.
"""

import pytest

LONGEST_FIRST = (   # so that nothing long is left when the other processes are done; the rest follows as it is collected
    "tests/crash/test_points.py", "tests/crash/test_schedule.py", "tests/crash/test_block.py", "tests/crash/test_lines.py",
    "tests/crash/test_failing.py", "tests/crash/test_calls.py", "tests/crash/test_sabotage.py", "tests/test_fuzz.py",
    "tests/crash", "journal/tests/test_journal_interrupts.py", "tests/test_interrupts.py",
)
DIED = pytest.StashKey[list]()


def longest_first(items):
    """In place, and the same in every process: they must all have the same list."""
    def rank(item):
        path = item.nodeid.split("::")[0]
        return next((n for n, begin in enumerate(LONGEST_FIRST) if path.startswith(begin)), len(LONGEST_FIRST))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler.loadfile import LoadFileScheduling

    class ByModule(LoadFileScheduling):
        def remove_node(self, node):
            """What *node* had not done goes to others, but for the test in which it died: that has failed. Its id, or None."""
            units = self.assigned_work.pop(node)
            left = [(unit, name) for unit, tests in units.items() for name, done in tests.items() if not done]
            if not left:
                return None
            (unit, died_in), *others = left
            units[unit][died_in] = True
            for each in dict.fromkeys(unit for unit, _ in reversed(others)):
                self.workqueue[each] = {name: done for name, done in units[each].items() if not done}
                self.workqueue.move_to_end(each, last=False)
            for other in self.assigned_work:
                self._reschedule(other)
            return died_in

    config.option.loadscopereorder = False   # as they stand, not the modules with most tests first
    return ByModule(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    if error:
        node.config.stash.setdefault(DIED, []).append(node.gateway.id)
