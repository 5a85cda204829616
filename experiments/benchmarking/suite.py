"""A suite of benchmarks: the record that declares it, and the options of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._limits import option, option_as_in
from ..compiled import targets
from ..studies.executing.choice import Where
from ..training.config.options import TrainConfig
from .topology import jobs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Options(Where):
    """The options of all suites, and where the grids of the recommend suite are run.

    The entry point makes one flag per field, documented by `FIELD.metadata["help"]`.
    """

    batch_sizes: tuple[int, ...] = option(
        (6, 60, 600, 6000), "Global batch sizes of the train suite.", least=1, example="6,60,600"
    )
    rounds: int = option(7, "Number of timings per row.", least=1, most=10_000)
    seconds: float | None = option(
        None, "Approximate seconds per timing. Default: 2, 0.5 for a layer, 1 for inference.", above=0, most=3600
    )
    dataset: str = option_as_in(
        TrainConfig, "dataset", "digits", "Data set of the train suite; 'mnist' has the same shapes and sizes."
    )
    data_dir: str | None = option_as_in(TrainConfig, "data_dir", None, "TFDS data directory. Default: TFDS's own.")
    image_size: int = option_as_in(
        TrainConfig, "image_size", 224, "Height and width of the images of the ResNet-50 of --topology."
    )
    workdir: str = option_as_in(TrainConfig, "workdir", "runs/benchmark", "Folder for the results.")
    topology: str | None = option(
        None,
        "Compile the norm suite for accelerators that this machine lacks, and read the programs: 'v5e:2x2', "
        "'v5p:2x2x1', 'v6e:16x16', 'v4:2x2x1', 'tpu7x:2x2x1', 'h100:8'. --peers names the rows, ours "
        "included. A row of a ResNet-50 takes minutes.",
        form=targets.check_name,
    )
    per_device_batch_size: int = option(128, "Images per device of the ResNet-50 of --topology.", least=1)
    remat: str = option(
        jobs.REMAT[0],
        "Part of the ResNet-50 of --topology that the checkpoint policy applies to.",
        among=tuple(jobs.REMAT),
    )

    @property
    def folder(self) -> Path:
        """The folder for the results."""
        return Path(self.workdir)


class Chosen(NamedTuple):
    """The chosen parts and peers of a suite, and the timing.

    Attributes:
      parts: names of parts of the suite.
      peers: names of peers of the suite.
      rounds: the number of timings of each variant.
      seconds: the approximate duration of one timing.
    """

    parts: tuple[str, ...]
    peers: tuple[str, ...] = ()
    rounds: int = 7
    seconds: float = 1.0


# A function that is given the rows so far, to write them down: what was measured is not lost if the rest fails.
Keep = Callable[[Any], object]


def forget(rows: Any) -> None:
    """Keeps nothing: the `Keep` of a caller that takes the rows from the result."""


@dataclass(frozen=True)
class Suite:
    """A suite of benchmarks.

    Attributes:
      name: the name in `--suite`.
      help: a phrase for the measured quantity.
      parts: the names of the parts.
      measure: a function that measures the chosen parts, and prints and keeps each row when it is done.
      file: the type of the file that holds the rows, a `records.benchmarks.result.ResultFile`.
      peers: the names of the libraries or variants that the suite can compare with.
      seconds: the default for the approximate duration of one timing.
      file_name: a function that returns the name of the file without its ending; None: the name of the suite is used.
      draw: a function that draws the picture of a file; None: there is no picture.
      compiled: the suite that replaces this one if `--topology` is given; None: `--topology` is refused.
    """

    name: str
    help: str
    parts: tuple[str, ...]
    measure: Callable[[Chosen, Options, Keep], Any]
    file: Any
    peers: tuple[str, ...] = ()
    seconds: float = 1.0
    file_name: Callable[[Options], str] | None = None
    draw: "Callable[[Path], Figure] | None" = None
    compiled: "Suite | None" = None

    def path(self, options: Options) -> Path:
        """Returns the path of the file of the suite."""
        name = self.name if self.file_name is None else self.file_name(options)
        return options.folder / f"{name}.json"
