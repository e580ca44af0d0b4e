"""Follow every call of every module of a model, pass by pass."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn

from eigendet.errors import UserError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def each_call(
    model: nn.Module,
    see: Callable[[str, int, nn.Module, Any, Any], None],
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
    counts: Callable[[], bool] = lambda: True,
    strict: bool = True,
) -> Iterator[None]:
    """Call a function after every call of every module, while the context is open.

    The output is what `forward` returned, before hooks that a module has of its own. The hooks here are the process's,
    not the modules', so that the model stays as it is: it can be copied and pickled. What runs again in a backward
    pass, under gradient checkpointing, was seen before and is left out.

    Args:
        model: whose modules are followed.
        see: called as `see(path, call index, module, inputs, output)`. Indices start at 0 in every pass, which is one
            call from outside: of the model, of a part of it, or of a method of either (`forward_features`); a round
            of a loop that such a method runs over batches is one as well.
        before: called before every pass.
        after: called after every pass that succeeded.
        counts: called when a pass begins; False leaves it out.
        strict: whether what cannot be followed is refused, rather than left out.

    Raises:
        UserError: another thread runs the model at the same time, so that calls cannot be told apart; a module was
            replaced by another.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> with each_call(model, lambda path, call, module, inputs, output: print(path, call, tuple(output.shape))):
        ...     output = model(torch.zeros(5, 3))
        0 0 (5, 2)
        1 0 (5, 2)
         0 (5, 2)
    """
    follower = _Follower(model, see, before, after, counts, strict)
    enter, leave = torch.compiler.disable(follower.enter), torch.compiler.disable(follower.leave)
    entering = nn.modules.module.register_module_forward_pre_hook(enter)
    leaving = nn.modules.module.register_module_forward_hook(leave, always_call=True)
    try:
        yield
        follower.end()
    finally:
        entering.remove()
        leaving.remove()


class _Follower:
    """What `each_call` knows of the present pass."""

    def __init__(
        self,
        model: nn.Module,
        see: Callable[[str, int, nn.Module, Any, Any], None],
        before: Callable[[], None],
        after: Callable[[], None],
        counts: Callable[[], bool],
        strict: bool,
    ) -> None:
        self.see, self.before, self.after, self.counts, self.strict = see, before, after, counts, strict
        self.model, self.parts = model, dict(model.named_modules())
        self.paths = {id(module): path for path, module in self.parts.items()}
        self.strangers = weakref.WeakSet[nn.Module]()  # modules that run within the model, and are not of it
        self.calls: Counter[str] = Counter()
        self.depth, self.thread = 0, 0
        self.handled: BaseException | None = None  # by whoever began the present pass
        self.is_counted = self.is_open = False  # the present pass
        self.method: FrameType | None = None  # of the model or a part of it, that the present pass is a call of
        self.first = "", 0  # which part was called first in it, and from where in the method
        self.has_warned = False
        self.entries: dict[tuple[str, int], str] = {}  # how the pass began in which a call was seen first

    def enter(self, module: nn.Module, inputs: Any) -> None:
        if _is_in_backward():
            return
        if id(module) not in self.paths:
            if self.depth and self.strict and module not in self.strangers:
                self.meet(module)
            return
        thread = threading.get_ident()
        if self.depth and thread != self.thread:
            if not self.strict:
                return
            raise UserError(
                f"{self.paths[id(module)] or 'the model'}: two threads run the model at the same time, so its calls "
                "cannot be told apart; let them take turns, or give each a copy and observe one."
            )
        if self.depth and self.paths[id(module)] == self.first[0] and not _is_within(module):
            self.depth, self.is_open = 0, False  # what is no Exception, such as KeyboardInterrupt, runs no hooks
        if self.depth == 0:
            method = _method(self.paths) if self.paths[id(module)] else None
            place = self.paths[id(module)], method.f_lasti if method else 0
            # Where a method goes through batches in a loop, each round is a pass.
            if not self.is_open or method is None or method is not self.method or place == self.first:
                self.end()
                self.begin(method)
                self.first = place
            self.thread, self.handled = thread, sys.exc_info()[1]
        self.depth += 1

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        path = self.paths.get(id(module))
        if path is None or _is_in_backward() or threading.get_ident() != self.thread:
            return
        try:
            if self.is_counted:
                self.tell_apart(path)
                self.see(path, self.calls[path], module, inputs, output)
        finally:
            self.calls[path] += 1
            self.depth -= 1
        if self.depth == 0:
            if output is None and sys.exc_info()[1] is not self.handled:  # it failed
                self.is_open, self.method = False, None
            elif self.method is None:
                self.end()

    def begin(self, method: FrameType | None) -> None:
        self.calls.clear()
        self.is_counted, self.is_open, self.method = self.counts(), True, method
        if self.is_counted:
            self.before()

    def end(self) -> None:
        is_complete = self.is_open and self.is_counted and self.depth == 0
        self.is_open, self.method = False, None
        if is_complete:
            self.after()

    def meet(self, module: nn.Module) -> None:
        """Note a module that is not followed, unless it stands where one that is followed stood."""
        self.strangers.add(module)
        path = next((path for path, part in self.model.named_modules() if part is module), None)
        if path in self.parts and all(part is not self.parts[path] for part in module.modules()):
            raise UserError(
                f"{path}: another module was put in its place while the model was tapped; open a context for each."
            )

    def tell_apart(self, path: str) -> None:
        """Say it once if passes that begin differently make calls of one name: a function that calls parts in turn."""
        entry = self.method.f_code.co_qualname if self.method else self.first[0] or "the model"
        first = self.entries.setdefault((path, self.calls[path]), entry)
        if first != entry and self.strict and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "%s: call %d was seen in passes that began with %s and with %s, and is one tap. If one function calls "
                "both, make it a method of the model.", path or "the model", self.calls[path], first, entry,
            )  # fmt: skip


def _method(paths: dict[int, str]) -> FrameType | None:
    """Return the outermost frame that runs a method of one of these modules, if there is any.

    Whoever holds it can tell it from that of the next call, whose frame may else stand at the same place in memory.
    """
    outermost, frame = None, sys._getframe().f_back
    while frame is not None:
        code = frame.f_code
        is_method = code.co_argcount > 0 and "." in code.co_qualname and code.co_qualname.split(".")[-2] != "<locals>"
        if is_method and code.co_filename != nn.modules.module.__file__:
            outermost = frame if id(frame.f_locals.get(code.co_varnames[0])) in paths else outermost
        frame = frame.f_back
    return outermost


def _is_within(module: nn.Module) -> bool:
    """Return whether a call of a module, which has just begun, was made within another one of it."""
    calls, frame = 0, sys._getframe().f_back
    while frame is not None and calls < 2:
        is_call = frame.f_code is nn.Module._call_impl.__code__
        calls += is_call and frame.f_locals["self"] is module
        frame = frame.f_back
    return calls > 1


def _is_in_backward() -> bool:
    """Return whether this thread runs a backward pass; torch's own checkpointing asks so too."""
    return torch._C._current_graph_task_id() != -1
