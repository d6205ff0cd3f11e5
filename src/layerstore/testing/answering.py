"""A forked child that is asked again and again. Here: asking, and hearing that it died; not what it is asked."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Generic, TypeVar

from layerstore.testing.children import ChildDiedError, start_child

T = TypeVar("T")
Asked = TypeVar("Asked")


class Answering(Generic[Asked, T]):
    """A forked child that answers, one question after the other: for what is asked so often that forking would cost most.

    What one answer leaves behind in the process, the next one finds; ``close`` after one that may have left something.

    Args:
        answer: what answers, in the child; questions and answers are pickled.

    """

    def __init__(self, answer: Callable[[Asked], T]) -> None:
        self._answer = answer
        self._child: tuple[int, IO[bytes], IO[bytes]] | None = None

    def ask(self, question: Asked) -> T:
        """Ask; the child is forked if there is none.

        Args:
            question: what the function is called with.

        Returns:
            What it returned.

        Raises:
            ChildDiedError: it died, or raised; its traceback is on stderr.

        Durability: as the function's.

        """
        if self._child is None:
            self._child = self._start()
        _, questions, answers = self._child
        try:
            pickle.dump(question, questions)
            questions.flush()
            answer: T = pickle.load(answers)  # noqa: S301 - from our own child
        except (EOFError, BrokenPipeError):
            raise ChildDiedError(self.close() or signal.SIGKILL) from None
        return answer

    def close(self) -> int:
        """End the child, if there is one; the next question is answered by a new one.

        Returns:
            Its wait status.

        Durability: none.

        """
        if self._child is None:
            return 0
        pid, questions, answers = self._child
        self._child = None
        with suppress(BrokenPipeError):
            questions.close()
        answers.close()
        return os.waitpid(pid, 0)[1]

    def _start(self) -> tuple[int, IO[bytes], IO[bytes]]:
        (question_fd, questions_fd), (answers_fd, answer_fd) = os.pipe(), os.pipe()

        def work() -> None:
            os.close(questions_fd)
            os.close(answers_fd)
            with os.fdopen(question_fd, "rb") as questions, os.fdopen(answer_fd, "wb") as answers, suppress(EOFError):
                while True:
                    pickle.dump(self._answer(pickle.load(questions)), answers)  # noqa: S301 - from our own parent
                    answers.flush()

        pid = start_child(work)
        os.close(question_fd)
        os.close(answer_fd)
        return pid, os.fdopen(questions_fd, "wb"), os.fdopen(answers_fd, "rb")


__all__ = ["Answering"]
