"""What must hold, in the words of the crash rigs' oracle. Looks at worlds only.

``always``   in every state: what does not depend on anybody having recovered
``usable``   in every state in which some handle has recovered and not died
``at_rest``  when one recovery has run alone to its end
"""

from __future__ import annotations

from crash.model.scopes import Scope
from crash.model.world import LAYERS, STAGING, TRASH, Tree, Violation, World
from layerstore.lifecycle.states import State

_WHERE = ("nowhere", "in staging/", "in layers/", "in trash/", "nowhere")
_PASSING = frozenset({State.STAGING, State.CREATING, State.INCOMPLETE, State.DELETING})


def always(scope: Scope, w: World) -> None:
    visible = {tree.id for tree in w.trees if tree.row is State.COMMITTED}
    for t, tree in enumerate(w.trees):
        if tree.row is State.QUARANTINED:
            raise Violation(f"T{t} was promised and is quarantined")
        parent = scope.parent(tree.id)
        if tree.row is State.COMMITTED and parent is not None and parent not in visible:
            raise Violation(f"T{t} (layers/{tree.id}) is visible, but its parent layers/{parent} is not")
        if tree.row in (State.STAGED, State.CREATING, State.INCOMPLETE, State.COMMITTED) and not tree.good_durable:
            raise Violation(f"T{t} is {tree.row.value}, but its content is not durable")
    for first in range(len(w.trees)):
        for second in range(first):
            a, b = w.trees[first], w.trees[second]
            if a.at == b.at == LAYERS and a.id == b.id:
                raise Violation(f"T{first} and T{second} are both at layers/{a.id}")
    if w.below == 3:
        raise Violation("the log has a gap: records were cut before their segment was durable")


def usable(_scope: Scope, w: World) -> None:
    for t, tree in enumerate(w.trees):
        if tree.kept and tree.row not in (State.ABSENT, State.STAGING, State.DELETING, State.GONE):
            raise Violation(f"T{t} is {tree.row.value}, and still has its spool")
        if tree.row is State.COMMITTED:
            _committed(t, tree, above=t in w.log)
        elif tree.row in (State.STAGED, State.CREATING) and (tree.at != STAGING or not tree.good):
            raise Violation(f"T{t} is {tree.row.value}, but {_what(tree)}")
        elif tree.row is State.INCOMPLETE and (tree.at not in (STAGING, LAYERS) or not tree.good):
            raise Violation(f"T{t} is promised, but {_what(tree)}")
        elif tree.row is State.GONE:
            if tree.at in (STAGING, LAYERS):
                raise Violation(f"T{t} was deleted, acknowledged, and is back {_WHERE[tree.at]}")
            if t not in w.log and tree.may & (1 << STAGING | 1 << LAYERS):
                raise Violation(f"T{t} was deleted below the mark, but its way to trash is not durable")
        elif tree.row is State.ABSENT and tree.at == LAYERS:
            raise Violation(f"T{t} is in layers/{tree.id}, and the journal does not know it")


def _what(tree: Tree) -> str:
    return f"is {_WHERE[tree.at]}" if tree.good else f"its content is bad ({_WHERE[tree.at]})"


def _committed(t: int, tree: Tree, *, above: bool) -> None:
    name = f"T{t} (layers/{tree.id}) is acknowledged"
    if tree.at != LAYERS or not tree.good:
        raise Violation(f"{name}, but {_what(tree)}")
    if not tree.side:
        raise Violation(f"{name}, but its side file is lost or torn")
    if not above and (tree.may != 1 << LAYERS or not tree.good_durable or not tree.side_durable):
        what = "its rename" if tree.may != 1 << LAYERS else "its side file"
        raise Violation(f"{name} and below the mark, but {what} is not durable")


def at_rest(w: World) -> None:
    """Each unacknowledged tree wholly there or wholly not, and nothing on disk that the journal does not know."""
    for t, tree in enumerate(w.trees):
        if tree.row in _PASSING and not (tree.row is State.STAGING and tree.at == STAGING and (tree.out or tree.kept)):
            raise Violation(f"after a recovery that was alone T{t} is still {tree.row.value}")
        if tree.row is State.ABSENT and tree.at in (STAGING, LAYERS, TRASH):
            raise Violation(f"after a recovery that was alone T{t} is {_WHERE[tree.at]}, and the journal does not know it")


def outcome(w: World) -> tuple[tuple[str, str], ...]:
    """What users see, and what the journal says: the same whenever and wherever recovery was interrupted.

    But for what is only filled, or has a spool: a loss of power keeps it or not, and nobody was promised it.
    """
    return tuple(sorted(
        ((State.ABSENT if tree.row is State.STAGING else tree.row).value, tree.id if tree.row is State.COMMITTED else "")
        for tree in w.trees
    ))
