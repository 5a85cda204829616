"""The register of all suites of `experiments.benchmark`, and the function that runs one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._errors import UsageError, unknown_name
from .._limits import option
from ..records.benchmarks.result import ResultFile
from ..studies.executing.choice import LOCAL
from . import critical_suite, driver_suite, fold_suite, noise_suite, recommend_suite, result, train_suite
from .norm import suite as norm_suite
from .suite import Chosen, Keep, Options, Suite

RECOMMEND = Suite(
    name="recommend",
    help="recommended batch sizes beside exhaustive grids: about two hours; rows in --workdir are reused",
    parts=recommend_suite.PARTS,
    peers=recommend_suite.PEERS,
    measure=lambda chosen, options, keep: recommend_suite.run(
        chosen.parts, folder=options.folder, data_dir=options.data_dir, keep=keep, executor=options.make()
    ),
    file=ResultFile[Any],
)
SUITES = {
    suite.name: suite
    for suite in (
        train_suite.SUITE,
        norm_suite.SUITE,
        fold_suite.SUITE,
        noise_suite.SUITE,
        RECOMMEND,
        critical_suite.SUITE,
        driver_suite.SUITE,
    )
}
_ALL = [one for suite in SUITES.values() for one in (suite, suite.compiled) if one is not None]
_SUITES_HELP = "; ".join(f"'{suite.name}', {suite.help}" for suite in SUITES.values())
_PARTS_HELP = "; ".join(f"{suite.name}: {', '.join(suite.parts)}" for suite in _ALL)


@dataclass(frozen=True)
class Request(Options):
    """The choice of a suite, and its options."""

    suite: str = option(
        train_suite.SUITE.name,
        f"What to measure: {_SUITES_HELP}.",
        among=tuple(SUITES),
    )
    parts: tuple[str, ...] | None = option(None, f"Parts of a suite. Default: all. {_PARTS_HELP}.")
    peers: tuple[str, ...] | None = option(
        None, "Libraries or variants to compare with. Default: all that are installed."
    )


def run(request: Request, arguments: Sequence[str]) -> None:
    """Measures a suite, and writes its file and its picture if it has one.

    Args:
      request: the suite and its options.
      arguments: the command line, which the file records.

    Raises:
      UsageError: the suite lacks a chosen part or peer, or cannot be compiled for a topology.
    """
    # Imported before the measurements, so that they are not lost if the import fails; and slow, so not for `--help`.
    from .. import reporting

    suite = _suite(request)
    if suite is not RECOMMEND and (request.executor != LOCAL or request.parallel is not None):
        raise UsageError(
            f"--executor and --parallel are for the grids of --suite={RECOMMEND.name}; --suite={suite.name} measures "
            "on this machine, one thing after another"
        )
    chosen = Chosen(
        parts=_known("part", request.parts, suite.parts),
        peers=_known("peer", request.peers, suite.peers),
        rounds=request.rounds,
        seconds=request.seconds or suite.seconds,
    )
    path = suite.path(request)

    def keep(rows: Any) -> None:
        result.write(rows, path, arguments)

    keep(measure(suite, chosen, request, keep))
    print(f"written to {path}")
    if suite.draw is not None:
        print(f"and {reporting.write_svg(suite.draw(path), path.with_suffix('.svg'))}")


def measure(suite: Suite, chosen: Chosen, options: Options, keep: Keep) -> Any:
    """Measures and returns the rows of a suite, and prints and keeps each when it is done."""
    return suite.measure(chosen, options, keep)


def _suite(request: Request) -> Suite:
    suite = SUITES[request.suite]
    if request.topology is None:
        return suite
    if suite.compiled is None:
        able = " and ".join(f"--suite={one.name}" for one in SUITES.values() if one.compiled is not None)
        raise UsageError(f"--topology applies to {able}; got --suite={suite.name}")
    return suite.compiled


def _known(kind: str, given: tuple[str, ...] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    for one in given or ():
        if one not in known:
            raise unknown_name(kind, one, known, hint=f" It is --{kind}s.")
    return known if given is None else given
