"""An executor that trains nothing, for tests of the driver of a study."""

import random
from collections.abc import Callable, Sequence

from experiments.studies.executing.task import Answer, Task


class Stub:
    """Workers whose answers a function gives, in an order of its own; an `executing.task.Executor`.

    Attributes:
      done: the tasks that were answered, in that order.
      most: the most tasks that were under way at once.
    """

    def __init__(self, answer: Callable[[Task], Answer], slots: int = 1, seed: int | None = None):
        self._answer, self._slots = answer, slots
        self._random = None if seed is None else random.Random(seed)
        self._under_way: list[Task] = []
        self.done: list[Task] = []
        self.most = 0

    @property
    def running(self) -> list[Task]:
        return list(self._under_way)

    def takes(self, task: Task, begun: Sequence[Task] = ()) -> bool:
        del task
        return len(self._under_way) + len(begun) < self._slots

    def submit(self, tasks: Sequence[Task]) -> None:
        self._under_way += tasks
        self.most = max(self.most, len(self._under_way))

    def finished(self, seconds: float) -> list[tuple[Task, Answer]]:
        del seconds
        if not self._under_way:
            return []
        task = self._under_way.pop(0 if self._random is None else self._random.randrange(len(self._under_way)))
        self.done.append(task)
        return [(task, self._answer(task))]

    def end(self, *, now: bool = False) -> None:
        del now
        self._under_way.clear()
