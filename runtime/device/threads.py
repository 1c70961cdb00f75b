"""The threads that a library's kernels run in: how many, on which cores, and how they wait."""

from __future__ import annotations

from dataclasses import dataclass

from cupola.runtime.artifact.manifest import COMPILE_AGAIN
from cupola.runtime.device.library import Library
from cupola.runtime.errors import OptionError
from cupola.runtime.system.fast_cores import choose_cores


@dataclass(frozen=True)
class ThreadOptions:
    """Of a library's threads.

    Attributes:
        num_threads: None are as many as CUPOLA_NUM_THREADS says, else as there are fast cores that this process may keep busy.
        power_saver: whether those that wait sleep (OpenMP's passive wait policy), instead of watching for what comes next.
    """

    num_threads: int | None = None
    power_saver: bool = False

    def count(self) -> int:
        """How many that are here."""
        return choose_cores(self.num_threads)[0]

    def apply(self, library: Library) -> int:
        """Sets up the library's threads; gives how many there are.

        Raises:
            OptionError: `power_saver` is asked of a library that can't save power.
        """
        count, cores = choose_cores(self.num_threads)
        if not library.set_power_saver(self.power_saver) and self.power_saver:
            problem = f"is not for {library.file.name}: it was compiled for a GPU, or by an older cupola"
            raise OptionError(problem, field="power_saver", fix=f"leave it out; of the CPU's, {COMPILE_AGAIN}")
        library.set_cores(cores)
        return library.set_threads(count)


DEFAULT_THREADS = ThreadOptions()
