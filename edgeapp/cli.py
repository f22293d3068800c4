"""Words -> settings -> command; the only border: errors become messages and exit codes here."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from edgeapp import config, errors, launched, paths, settings
from edgeapp.log import Talk
from edgeapp.stopping import Stop
from edgeapp.verbs import VERBS, Verb, asked_about

Command = Callable[[settings.Settings, Stop, Talk], int]

WHAT = "Runs TensorRT plans on NVIDIA GPUs, and ONNX models on the CPU."

EXAMPLES = """examples:
  edgeapp --engine model.plan --input img.jpg             a TensorRT plan on the GPU
  edgeapp --engine model.onnx --input photos/ --save out  an ONNX model on the CPU, pictures into out/
  edgeapp --engine model.plan --input x.npz --output y.npz --task raw
  find . -name '*.jpg' | edgeapp --engine model.plan --input - --output results.csv
  ffmpeg -i rtsp://CAMERA -f mjpeg - | edgeapp --engine model.plan --input mjpeg:- --live
  edgeapp demo

exit codes:
  0 done   1 some inputs failed (doctor: warnings)   64 usage   65 bad plan, model or all inputs
  66 file not found   69 no driver or GPU   70 a bug   71 the system refused   73 cannot write
  74 input/output   75 GPU lost (of several: all), a restart heals   77 permission   78 configuration

Every option can be set by an environment variable too, EDGEAPP_ENGINE, EDGEAPP_SCORE_THRESHOLD ..., or in a
TOML file (--config): flags win over variables, they over the file. Options that let code run, such as --plugin,
are taken from flags, and from a file that root owns and nobody else may write.
EDGEAPP_CACHE names the folder into which the program unpacks itself once; EDGEAPP_VERIFY=1 has it check every byte
there at each start."""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours, with the nearest flag named."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            words = message.removeprefix(prefix).split()
            near = difflib.get_close_matches(words[0].split("=")[0], known, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise errors.UsageError(f"unknown argument {words[0]}{hint}", "", f"see {self.prog} --help")
        raise errors.UsageError(message.removeprefix("argument "), "", f"see {self.prog} --help")


def parse(words: Sequence[str]) -> tuple[Command, settings.Settings]:
    """The command and its settings; `--help` prints and ends the program.

    Raises:
        UsageError: a word is not understood.
    """
    name, rest = "run", list(words)
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
    verb, parser = _parser(name, bare=len(rest) == len(words))
    given = parser.parse_args(rest)
    command = partial(verb.call, given)
    if name == "run" and asked_about(given):
        return command, settings.Settings()
    default = config.DEFAULT_FILE if verb.configured else None
    given.again = lambda: parse(words)[1]
    if name != "check":
        options = settings.from_arguments(given, file=config.load(given, default=default))
        if options.devices is not None and "device" in verb.options and not verb.several_gpus:
            raise _one_gpu(name)
        return command, options
    given.problems = []
    file = config.load(given, default=default, problems=given.problems)
    options = settings.from_arguments(given, file=file, problems=given.problems)
    if options.devices is not None and options.spool is not None:
        given.problems.append(_one_gpu("serve"))
    return command, options


def _parser(name: str, *, bare: bool) -> tuple[Verb, _Parser]:
    """The command of that name and its parser.

    Args:
        bare: the name was not given: then all commands are shown.

    Raises:
        UsageError: there is no such command.
    """
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, 1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise errors.UsageError(
            f"unknown command {paths.printable(name)}{hint}",
            f"the commands are {', '.join(VERBS)}",
            "for a picture: edgeapp --engine model.plan --input img.jpg",
        )
    verb = VERBS[name]
    lines = "\n".join(f"  {other:9s} {VERBS[other].help}" for other in VERBS)
    parser = _Parser(
        prog="edgeapp" if bare else f"edgeapp {name}",
        description=f"{WHAT}\n\ncommands:\n{lines}" if bare else verb.help,
        epilog=EXAMPLES if bare else verb.epilog,
        usage="edgeapp [COMMAND] [--engine FILE] [--input PATH ...] [options]" if bare else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if bare or name != "run":
        verb.arguments(parser)
    settings.add_options(parser, verb.options)
    return verb, parser


def _one_gpu(name: str) -> errors.UsageError:
    return errors.UsageError(f"{name} uses one GPU", "--device names several", "choose one: --device 0")


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit."""
    paths.restore_environment()
    launched.take_over()
    sys.exit(_guarded(sys.argv[1:] if words is None else words))


def _guarded(words: Sequence[str]) -> int:
    """The exit code; every error is printed here and nowhere else."""
    talk = Talk(debug="--debug" in words)
    try:
        stop = Stop()
    except OSError as error:
        refused = paths.refusal("cannot start", error)
        talk.error(refused)
        return refused.exit_code
    try:
        stop.install(service=list(words[:1]) == ["serve"])
        command, options = parse(words)
        talk = Talk(quiet=options.quiet, debug=options.debug)
        return command(options, stop, talk)
    except errors.Stopped:
        stop.die()
    except errors.EdgeappError as error:
        if talk.debug:
            _stack_trace()
        if not isinstance(error.__cause__, BrokenPipeError):  # `| head` wants no complaint
            talk.error(error)
        return error.exit_code
    except Exception as error:
        if errors.starved(error) is None:
            _stack_trace()
        unforeseen = errors.unforeseen(error)
        talk.error(unforeseen)
        return unforeseen.exit_code
    finally:
        _flush()


def _stack_trace() -> None:
    import traceback

    traceback.print_exc()


def _flush() -> None:
    """Write what is buffered; what cannot be written must not fail again when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
