"""The command line of ``tools/run.py``: cheap to import, so that ``--help`` is answered at once."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from jestbench.disk import command_name, nearest, user_path
from jestbench.parallel.stop import STOP
from jestbench.storage import is_of_the_disk, storage_error

EPILOG = """\
A BINDING is Name.parameter=value; --Name.parameter=value means the same, and gin_file=FILE is taken
like --gin_file FILE. Bindings win over files, later ones over earlier ones.

exit status: 0 finished, 1 an exception inside a policy, 2 wrong configuration or a policy that breaks its
contract, 3 wrong or missing data, 4 the loss is not finite, 130 interrupted (a checkpoint is written; go on
with --resume)
"""

BINDING = re.compile(r"(?:[A-Za-z_][\w/]*\.[\w.]+|[A-Z][A-Z0-9_]*)=", re.DOTALL)
"""How a binding among other words begins: ``Name.parameter=``, or a macro in capitals."""
# A binding behind hyphens, as W&B's ${args} writes it.
_DOTTED = re.compile(rf"^--?(?P<binding>{BINDING.pattern}.*)$", re.DOTALL)


class _Parser(argparse.ArgumentParser):
    """A parser that prints one short message on an error, instead of the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def plain_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser whose errors are one message, of whole options, with an epilog as it is written."""
    plain = argparse.RawDescriptionHelpFormatter
    return _Parser(prog=name, description=description, epilog=epilog, formatter_class=plain, allow_abbrev=False)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command's arguments."""
    description = "One arm: train one learner under one selection policy, until a budget of FLOPs is spent."
    command = plain_parser(command_name("run"), description, EPILOG)
    command.add_argument("bindings", nargs="*", metavar="BINDING", help="Name.parameter=value")
    command.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="may be given several times")
    command.add_argument("--gin_param", action="append", default=[], metavar="BINDING", help="a binding")
    command.add_argument("--run_dir", type=user_path, help="default: a new folder under runs/")
    command.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --run_dir")
    command.add_argument("--check", action="store_true", help="build everything, try one tiny batch; train nothing")
    command.add_argument("--allow_downloads", action="store_true", help="let --check fetch URLs, hub names and weights")
    command.add_argument("--allow_pipes", action="store_true", help="let --check run the commands of pipe: shards")
    command.add_argument("--price", action="store_true", help="print what a step costs; train nothing")
    command.add_argument(
        "--fill_cache", action="store_true", help="fill the frozen models' shared cache; train no learner"
    )
    command.add_argument(
        "--verbose", action="store_true", help="with --check: whole configurations, the reference's too"
    )
    command.add_argument("--list_policies", action="store_true", help="print the registered policies")
    command.add_argument(
        "--describe",
        nargs="?",
        const="",
        metavar="NAME",
        help="print the parameters of a policy or any other name; without NAME, what there is",
    )
    command.add_argument(
        "--allow_unused", action="append", nargs="+", default=[], metavar="PATTERN", help="such as 'jest.*'"
    )
    return command


def _one_spelling(argv: Sequence[str]) -> list[str]:
    """Rewrite all spellings of a file, a binding and a pattern to one of each, in order (later ones win)."""
    words: list[str] = []
    unwrap = patterns = False
    for word in argv:
        if unwrap or word.startswith("--gin_param="):
            word, unwrap = word.removeprefix("--gin_param="), False
        elif word == "--gin_param":
            unwrap = True
            continue
        if matched := _DOTTED.match(word):
            word = matched["binding"]
        patterns = word == "--allow_unused" or (patterns and not word.startswith("-") and "=" not in word)
        if word == "--allow_unused":
            words.append("--allow_unused")
        elif patterns:
            if words[-1] == "--allow_unused":
                words.pop()
            words.append(f"--allow_unused={word}")
        else:
            words.append(f"--{word}" if word.startswith("gin_file=") else word)
    return [*words, "--gin_param"] if unwrap else words


def _meant_by(word: str, options: Iterable[str]) -> str:
    """A hint at the nearest option, or at the bindings that the name of an unknown option may mean; empty without."""
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    if near := nearest(name, options, "; did you mean --{}?", cutoff=0.7):
        return near
    from jestbench.config.registry import meant_by  # imports torch, which the command's help does without

    meant = meant_by(name)
    return f"; did you mean {', '.join(meant)}?" if meant else ""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments, in any spelling of files and bindings."""
    arguments = parse_words(parser(), argv)
    arguments.allow_unused = [word for group in arguments.allow_unused for word in group]
    return arguments


def parse_words(command: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse words that may hold bindings; exit with status 2, and with what may be meant, where one is unknown."""
    arguments, unknown = command.parse_known_intermixed_args(_one_spelling(argv))
    if unknown:
        hint = _meant_by(unknown[0], vars(arguments).keys() - {"bindings"})
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def new_run_dir(arm: str, seed: int) -> Path:
    """A new, empty folder under ``runs/``; no other process is given the same one."""
    stem = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', arm) or 'run'}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = [Path("runs") / stem, *(Path("runs") / f"{stem}-{n}" for n in range(2, 1000))]
    return next(path for path in candidates if _made(path))


def _made(path: Path) -> bool:
    """Make a folder; return whether it was not there before."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def guarded(work: Callable[[], int], again: str = "go on with --resume") -> int:
    """Run ``work``; turn an error that a user can fix into one message on stderr and an exit status.

    Args:
        work: gives the exit status where nothing goes wrong.
        again: what to do after an interruption, for the message.
    """
    try:
        return work()
    except KeyboardInterrupt:
        if not int(os.environ.get("RANK", "0")):
            print(f"interrupted; {again}", file=sys.stderr)
        return 130
    except Exception as error:
        # This project's exceptions that a user can fix carry a status; importing their classes would import timm.
        if isinstance(error, OSError) and is_of_the_disk(error):
            error = storage_error(error)
        status: int | None = getattr(type(error), "exit_status", None)
        if status is None:
            _report(f"{type(error).__name__}: {error}")
            raise
        shown = _said(str(error), status, getattr(error, "failed_first", False))
        if error.__cause__ is not None and getattr(type(error), "shows_cause", False):
            _print_own_traceback(error.__cause__)
        return shown


def _print_own_traceback(error: BaseException) -> None:
    """Print the traceback of an exception inside a policy from the policy's own code on."""
    inside = error.__traceback__
    while (
        inside is not None
        and inside.tb_next is not None
        and "jestbench.select." in inside.tb_frame.f_globals.get("__name__", "")
    ):
        inside = inside.tb_next
    traceback.print_exception(type(error), error, inside)


def _said(message: str, status: int, failed_first: bool) -> int:
    """Print an error; one that all ranks have before they have joined is printed by rank 0 alone."""
    rank = int(os.environ.get("RANK", "0"))
    if message.startswith(f"process {rank} ends because"):
        print(message, file=sys.stderr)
        return status
    if not rank or failed_first or status != 2:
        # One line, but for a list of damage, which has a line for each kind.
        shown = "\n  ".join(" ".join(line.split()) for line in re.split(r"\n  (?=\d+ × |mend )", message))
        text = f"error: {f'process {rank}: ' if rank else ''}{shown}"
        print(text, file=sys.stderr)
        _report(text)
    return status


def _report(reason: str) -> None:
    """Let torchrun's own report, which comes last, end with the reason."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from jestbench.parallel.peers import report_to_torchrun

        report_to_torchrun(reason)


@contextmanager
def for_a_reader() -> Iterator[None]:
    """End in silence where the reader of stdout has closed it (``| head``)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails too


@contextmanager
def importing() -> Iterator[None]:
    """Disable garbage collection during imports, which then take two thirds of the time; freeze what was imported."""
    if "torch" in sys.modules:  # a long-lived process may hold garbage of its own
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _run(arguments: argparse.Namespace) -> int:
    # Set before torch is imported: threads that spin at a barrier make small steps 5 times slower as soon as
    # another process needs one of the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments.list_policies:
        return _list_policies(arguments.gin_file)
    if arguments.describe is not None:
        return _describe(arguments.describe, arguments.gin_file)
    with importing():
        from jestbench.config import resolve
        from jestbench.config.run import ConfigError
        from jestbench.launch import rehearse, train_run
        from jestbench.parallel import distributed
        from jestbench.runs.folder import RunFolder
        from jestbench.runs.open_folder import recorded

    files = list(arguments.gin_file)
    if not files and arguments.resume and arguments.run_dir is not None:
        files = [str(RunFolder(arguments.run_dir).operative_gin)]
    if not files:
        raise ConfigError("nothing to run: give --gin_file FILE (gin/run/tiny.gin ends in under a minute)")
    STOP.check()
    resolved = resolve.resolve(files, arguments.bindings, arguments.allow_unused, recorded=recorded)
    if int(os.environ.get("RANK", "0")) and (arguments.check or arguments.price or arguments.fill_cache):
        return 0  # started by torchrun: rank 0 alone does the work
    if arguments.check:
        may = rehearse.allowed(arguments.allow_downloads, arguments.allow_pipes)
        with for_a_reader():
            rehearse.check(resolved, may, arguments.verbose)
        return 0
    if arguments.price:
        from jestbench.launch.forecast import price_table
        from jestbench.launch.stands import with_start

        with train_run.building():
            table = price_table(with_start(rehearse.without_download(resolved, "meta")))
        with for_a_reader():
            print(table)
        return 0
    if arguments.fill_cache:
        from jestbench.launch.fill import fill_cache

        print(json.dumps(fill_cache(resolved), indent=2))
        return 0
    if arguments.resume and arguments.run_dir is None:
        raise ConfigError("--resume needs the run's folder: --run_dir DIR")
    with distributed.started() as world:
        # A run that torchrun starts again goes on by itself, in the folder that it has begun in.
        begun = world.first(lambda: distributed.remembered(train_run.begun_as(resolved)))
        own = Path(begun) if begun else arguments.run_dir
        run_dir = world.first(lambda: own or new_run_dir(resolved.run.arm, resolved.run.seed))
        status = train_run.train_run(resolved, run_dir, arguments.resume or begun is not None)
        if world.first_of_all:
            print(f"{status}: {os.fspath(run_dir)}")
    return 0 if status == "finished" else 130


def _list_policies(files: Sequence[str]) -> int:
    """Print the registered policies and those that files import, each with the first line of its description."""
    with importing():
        from jestbench.config.registered import policy_classes

    if files:
        from jestbench.config.resolve import read_files  # imports gin, which the list does without

        list(read_files(files))
    with for_a_reader():
        for name, cls in policy_classes().items():
            print(f"{name:<20}{(cls.__doc__ or '').strip().partition(chr(10))[0]}")
    return 0


def _describe(name: str, files: Sequence[str]) -> int:
    """Print what ``--describe`` asks for; files are read for the policies that they import."""
    with importing():
        from jestbench.config.resolve import read_files
        from jestbench.launch.describe import described, everything

    list(read_files(files))
    with for_a_reader():
        print(described(name) if name else everything())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of ``tools/run.py`` in this process.

    Returns:
        The exit status: 0 finished, 1 an exception inside a policy, 2 wrong configuration or a policy that breaks
        its contract, 3 wrong or missing data, 4 a loss that is not finite, 130 interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        with STOP.handled():
            return guarded(lambda: _run(parse(words)))
    except SystemExit as stop:  # of the parser
        return int(stop.code or 0)
