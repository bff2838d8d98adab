"""Shows progress: a bar on a terminal or in a notebook, or lines in a log, at most one a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from datacomp_flyt.errors import printable
from datacomp_flyt.streams import say

_LOG_INTERVAL = 60.0  # seconds between two lines of a log
_TENTHS_INTERVAL = 1.0  # least seconds between two lines of tenths

T = TypeVar("T")


class Progress:
    """The progress of one piece of work. In a log, the first line comes after a minute."""

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "",
        *,
        initial: int = 0,
        leave: bool = True,
        tenths: bool = False,
        quiet: bool = False,
        **options: Any,
    ) -> None:
        """
        Args:
            label: the name of the work; it may quote names from files.
            total: the number of units.
            unit: the name of a unit, in the singular.
            initial: the number of units that were done before.
            leave: keep the bar when the work is done.
            tenths: in a log, also print a line for each tenth of the work and for its end.
            quiet: show nothing.
            options: options of tqdm, for the bar.
        """
        self.done, self.total, self.unit = initial, total, unit
        self._label, self._tenths, self._quiet = printable(label), tenths, quiet
        self._note = ""
        self._began = self._last = time.monotonic()
        self._shown = 10 * initial // max(total, 1)  # tenths
        self._bar: Any = None
        if not quiet and (_is_terminal() or _is_notebook()):
            from tqdm.auto import tqdm  # logs do without

            options = {"unit": unit or "it", "initial": initial, "leave": leave, **options}
            self._bar = tqdm(desc=self._label, total=total, **options)

    def update(self, units: int = 1) -> None:
        """Add to the number of units that are done."""
        self.move_to(self.done + units)

    def move_to(self, done: int) -> None:
        """Set the number of units that are done. A call without a change updates the time."""
        units, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.update(units)
            if not units:  # refresh the elapsed time
                self._bar.refresh()
            return
        now = time.monotonic()
        since = now - self._last
        tenths = 10 * done // max(self.total, 1)
        next_tenth = self._tenths and self._shown < tenths < 10 and since >= _TENTHS_INTERVAL
        if not self._quiet and (next_tenth or since >= _LOG_INTERVAL):
            self._last, self._shown = now, tenths
            self._say(f"{100 * done // max(self.total, 1)}%")

    def note(self, text: str) -> None:
        """Set a text that is shown beside the progress."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(printable(text))

    def write(self, text: str) -> None:
        """Print a line on stdout, above the bar."""
        if self._bar is None:
            say(text)
            return
        with self._bar.external_write_mode():
            say(text)

    def close(self, done: bool = True) -> None:
        """End the display; in a log of tenths, print a last line if the work is done."""
        if self._bar is not None:
            self._bar.close()
        elif self._tenths and done and not self._quiet:
            self._say("done")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(kind is None)

    def _say(self, state: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        facts = [f"{minutes}:{seconds:02d}", *([self._note] if self._note else [])]
        if self.unit:
            facts.insert(0, f"{self.done:,} of {self.total:,} {self.unit}s")
        say(f"{self._label}: {state} ({', '.join(facts)})", error=True)


def with_progress(items: Iterable[T], label: str, total: int, unit: str) -> Iterator[T]:
    """Yield the items under a bar, which is removed after the last one."""
    with Progress(label, total, unit, leave=False) as progress:
        for item in items:
            yield item
            progress.update()


def _is_terminal() -> bool:
    try:
        return bool(sys.stderr.isatty())
    except (AttributeError, ValueError):  # stderr is None, or closed
        return False


def _is_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from tqdm.auto import tqdm

    return any(base.__name__ == "tqdm_notebook" for base in tqdm.__mro__)
