"""Records of the driver suite: `driver.json`."""

from ..fields import Count, Positive, Size
from ..record import Record
from .result import ResultFile


class DriverRow(Record, frozen=True, kw_only=True):
    """Holds what the driver of a study costs.

    Attributes:
      part: the name of the part of the suite.
      jobs: the number of jobs, or of rows that were there.
      workers: the number of workers, none of which trains anything; 0: nothing was run.
      seconds: the time of the driver, in all.
      megabytes: the most memory of the process.
      platform: the machine's cores and Python version.
    """

    part: str
    jobs: Size
    workers: Count
    seconds: Positive
    megabytes: Positive
    platform: str


DriverFile = ResultFile[list[DriverRow]]
