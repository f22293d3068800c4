"""Words -> settings -> command; the only border: errors become messages and exit codes here."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

from edgeapp import config, errors, launched, paths, settings
from edgeapp.log import Talk
from edgeapp.stopping import Stop

Command = Callable[[settings.Settings, Stop, Talk], int]


def _run(options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.run import run

    return run(options, stop, talk)


def _demo(options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.demo import demo

    return demo(options, stop, talk)


def _cache(action: str, as_json: bool, _: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.cache import cache

    return cache(action, as_json, stop, talk)


def _sign(key: str, files: Sequence[str], passphrase: str, _: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.sign import sign

    return sign(key, files, passphrase, stop, talk)


def _self_test(names: Sequence[str], as_json: bool, _: settings.Settings, stop: Stop, __: Talk) -> int:
    from edgeapp.commands.selftest import self_test

    return self_test(names, as_json, stop)


def _inspect(files: Sequence[str], as_json: bool, options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.inspect import inspect

    return inspect(files, as_json, options, stop, talk)


def _runtimes(as_json: bool, options: settings.Settings, _: Stop, __: Talk) -> int:
    from edgeapp.commands.runtimes import runtimes

    return runtimes(as_json, options.tensorrt_library)


def _bench(given: argparse.Namespace, options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.bench import bench
    from edgeapp.commands.bench_wanted import wanted_of

    if given.spin:
        options = replace(options, sync="spin")
    return bench(wanted_of(given), options, stop, talk)


def _service(given: argparse.Namespace, options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.service import service

    return service(given, options, stop, talk)


def _update(file: str, options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.update import update

    return update(file, options, stop, talk)


def _rollback(_: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.update import rollback

    return rollback(stop, talk)


def _model(given: argparse.Namespace, options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.models import model

    return model(given, replace(options, engine=given.file), stop, talk)


def _doctor(as_json: bool, options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.doctor import doctor

    return doctor(as_json, options, stop, talk)


def _serve(words: Sequence[str], options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.serve import serve
    from edgeapp.service.storms import EventLog

    log = EventLog(quiet=talk.quiet, debug=talk.debug, form=options.log)
    try:
        return serve(options, lambda: parse(words)[1], stop, log)
    except errors.EdgeappError as error:
        if talk.debug:
            _stack_trace()
        log.error(error)
        return error.exit_code
    finally:
        log.flush()


def _ctl(do: str, wait: bool, options: settings.Settings, _: Stop, __: Talk) -> int:
    from edgeapp.commands.ctl import ctl

    return ctl(do, wait, options)


def _config(given: argparse.Namespace, options: settings.Settings, _: Stop, __: Talk) -> int:
    from edgeapp.commands.config import config as show

    return show(given.action, options, origin=given.origin, as_json=given.json)


def _check(
    problems: Sequence[errors.EdgeappError], as_json: bool, options: settings.Settings, stop: Stop, talk: Talk
) -> int:
    from edgeapp.commands.check import check

    return check(problems, as_json, options, stop, talk)


def _golden(action: str, options: settings.Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.golden import golden

    return golden(action, options, stop, talk)


def _retry(names: Sequence[str], options: settings.Settings, _: Stop, talk: Talk) -> int:
    from edgeapp.commands.retry import retry

    return retry(names, options, talk)


def _about(what: str, _: settings.Settings, __: Stop, ___: Talk) -> int:
    from edgeapp.commands.about import about

    return about(what)


COMMANDS = {
    "run": "run a model on pictures or tensors (the default)",
    "serve": "take inputs from a folder, for years: results on the disk first, then the input moves",
    "ctl": "ask or tell a running service: status, reload, pause, resume, drain",
    "retry": "put inputs that failed back into the folder of the service",
    "bench": "measure how fast a model runs here, how fast it could, and what stands between",
    "demo": "find parts in the pictures that come with the program",
    "inspect": "tell what a model file is and whether it runs here, from its bytes; needs no GPU",
    "runtimes": "list the TensorRT libraries inside and on this machine, and which plans each runs",
    "sign": "write FILE.minisig, the signature that --require-signature wants",
    "doctor": "look at driver, GPUs, rights, disks, clock, heat; with --engine try the model; say what to do",
    "check": "say everything that is wrong with a configuration, before anything is started; needs no GPU",
    "config": "show the settings and where each comes from, or print a configuration file to fill in",
    "golden": "keep in the model card what the model answers, so that it is recognised wherever it runs",
    "service": "install the program as a service of systemd, remove it, look at it",
    "model": "give the service another model, or the one before",
    "update": "put another version of the program in place of the installed one",
    "rollback": "go back to the version before the last update",
    "cache": "look at the folder into which this file unpacks itself: path, list, verify, clear",
    "self-test": "load everything that is inside, without a GPU: does this file fit this machine",
}

CTL_ACTIONS = (
    "status: print all that is known, as JSON; reload: load what the configuration names now, beside the present "
    "model; pause: begin nothing new; resume; drain: finish what was begun, then end"
)

SHARING = ("run", "bench", "config")
"""Commands that take several GPUs."""

CACHE_ACTIONS = (
    "path: print the folder; list: what it holds; verify: compare every file with its SHA-256; "
    "clear: remove what no running program uses"
)

GOLDEN = (
    *("engine", "model_card", "device", "tensorrt_library", *settings.TRUSTING),
    *(option.name for option in settings.OPTIONS if option.card),
    *("quiet", "debug"),
)
"""Options of the command of that name."""

GOLDEN_ACTIONS = {
    "write": "keep it in the model card, which is made if need be",
    "check": "compare with what the model card keeps",
}

CONFIG_ACTIONS = "show: the settings as they would be used; template: a file with every option, commented out"

SIGN = """The format is minisign's: minisign -V verifies what this writes, and edgeapp what minisign -S writes.
minisign -G makes a pair of keys; machines that run the model get the public one, into /etc/edgeapp/keys.d
or by --trust-key.

example: edgeapp sign --key maker.key model.plan"""

CONFIGURED = ("serve", "check", "config")
"""Commands that read config.DEFAULT_FILE when no other is named."""

EXAMPLES = """examples:
  edgeapp --engine model.plan --input img.jpg             a TensorRT plan on the GPU
  edgeapp --engine model.onnx --input photos/ --save out  an ONNX model on the CPU, pictures into out/
  edgeapp --engine model.plan --input x.npz --output y.npz --task raw
  find . -name '*.jpg' | edgeapp --engine model.plan --input - --output results.csv
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
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise errors.UsageError(
                f"unknown command {paths.printable(name)}{hint}",
                f"the commands are {', '.join(COMMANDS)}",
                "for a picture: edgeapp --engine model.plan --input img.jpg",
            )
        parser = _Parser(
            prog=f"edgeapp {name}",
            description=COMMANDS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    else:
        lines = "\n".join(f"  {command:9s} {text}" for command, text in COMMANDS.items())
        parser = _Parser(
            prog="edgeapp",
            description="Runs TensorRT plans on NVIDIA GPUs, and ONNX models on the CPU.\n\ncommands:\n" + lines,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            usage="edgeapp [COMMAND] [--engine FILE] [--input PATH ...] [options]",
        )
        about = parser.add_argument_group("about this program")
        one = about.add_mutually_exclusive_group()
        one.add_argument("--version", action="store_true", help="print the version and end")
        one.add_argument("--sbom", action="store_true", help="print all that is inside, as CycloneDX JSON, and end")
        one.add_argument("--licenses", action="store_true", help="print the licence texts of all that and end")
        about.add_argument("--json", action="store_true", help="with --version: of everything that matters, as JSON")
    command: Command = _run
    if name == "demo":
        command = _demo
        settings.add_options(
            parser,
            ("engine", "input", "device", "output", "save", "quiet", "debug", "startup_trace"),
        )
    elif name == "bench":
        from edgeapp.commands.bench_wanted import add_arguments

        add_arguments(parser)
        settings.add_options(
            parser, [o.name for o in settings.OPTIONS if o.group not in (settings.OUT, settings.SERVICE)]
        )
    elif name == "serve":
        command = partial(_serve, words)
        left_out = ("input", "recursive", "output", "save", "startup_trace", "max_delay_ms")
        settings.add_options(parser, [o.name for o in settings.OPTIONS if o.name not in left_out])
    elif name == "ctl":
        parser.add_argument("do", choices=("status", "reload", "pause", "resume", "drain"), help=CTL_ACTIONS)
        parser.add_argument(
            "--wait", action="store_true", help="with reload: until the new model serves; exit as it went"
        )
        settings.add_options(parser, ("control", "spool", "quiet", "debug"))
    elif name == "retry":
        parser.add_argument("names", nargs="*", metavar="NAME", help="in SPOOL/failed; all of them if none is named")
        settings.add_options(parser, ("spool", "watch", "quiet", "debug"))
    elif name == "inspect":
        parser.add_argument("files", nargs="*", metavar="FILE", help="plans, ONNX models or anything else")
        parser.add_argument("--json", action="store_true", help="print JSON Lines")
        settings.add_options(parser, ("engine", "device", "tensorrt_library", *settings.TRUSTING, "quiet", "debug"))
    elif name == "runtimes":
        parser.add_argument("--json", action="store_true", help="print JSON Lines")
        settings.add_options(parser, ("tensorrt_library", "quiet", "debug"))
    elif name == "sign":
        parser.epilog = SIGN
        parser.add_argument("files", nargs="+", metavar="FILE", help="plan or .onnx model; any file")
        parser.add_argument("--key", required=True, metavar="K", help="secret key of minisign")
        parser.add_argument(
            "--passphrase-file",
            default="",
            metavar="FILE",
            help="its first line opens the key; else the terminal is asked",
        )
        settings.add_options(parser, ("quiet", "debug"))
    elif name == "doctor":
        parser.add_argument("--json", action="store_true", help="print JSON Lines")
        settings.add_options(
            parser, ("engine", "model_card", "device", "tensorrt_library", *settings.TRUSTING, "quiet", "debug")
        )
    elif name == "check":
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        settings.add_options(parser)
    elif name == "config":
        parser.add_argument("action", choices=("show", "template"), help=CONFIG_ACTIONS)
        parser.add_argument("--origin", action="store_true", help="show of each value where it came from")
        parser.add_argument("--json", action="store_true", help="show as one JSON object")
        settings.add_options(parser)
    elif name == "golden":
        parser.set_defaults(action="print")
        action = parser.add_mutually_exclusive_group()
        for word, text in GOLDEN_ACTIONS.items():
            action.add_argument(f"--{word}", dest="action", action="store_const", const=word, help=text)
        settings.add_options(parser, GOLDEN)
    elif name == "service":
        from edgeapp.commands.service import add_arguments as add_service_arguments

        add_service_arguments(parser)
        settings.add_options(parser, ("engine", "model_card", *settings.TRUSTED, "quiet", "debug"))
    elif name == "model":
        from edgeapp.commands.models import add_arguments as add_model_arguments

        add_model_arguments(parser)
        settings.add_options(parser, ("model_card", *settings.TRUSTED, "quiet", "debug"))
    elif name == "update":
        parser.add_argument("file", metavar="FILE", help="another edgeapp, for this kind of machine")
        settings.add_options(parser, ("trust_key", "require_signature", "quiet", "debug"))
    elif name == "rollback":
        settings.add_options(parser, ("quiet", "debug"))
    elif name == "cache":
        parser.add_argument("action", choices=("path", "list", "verify", "clear"), help=CACHE_ACTIONS)
        parser.add_argument("--json", action="store_true", help="print JSON Lines")
        settings.add_options(parser, ("quiet", "debug"))
    elif name == "self-test":
        parser.add_argument(
            "parts", nargs="*", metavar="PART", help="numpy, pillow, pynacl, onnxruntime, tensorrt or libraries"
        )
        parser.add_argument("--json", action="store_true", help="print JSON Lines")
        settings.add_options(parser, ("quiet", "debug"))
    else:
        settings.add_options(parser, [o.name for o in settings.OPTIONS if o.group != settings.SERVICE])
    given = parser.parse_args(rest)
    if name == "inspect":
        if given.files and given.engine:
            raise errors.UsageError("files and --engine go not together", "", "name --engine FILE alone")
        command = partial(_inspect, given.files, given.json)
    elif name == "bench":
        command = partial(_bench, given)
    elif name == "ctl":
        command = partial(_ctl, given.do, given.wait)
    elif name == "retry":
        command = partial(_retry, given.names)
    elif name == "runtimes":
        command = partial(_runtimes, given.json)
    elif name == "sign":
        command = partial(_sign, given.key, given.files, given.passphrase_file)
    elif name == "doctor":
        command = partial(_doctor, given.json)
    elif name == "config":
        command = partial(_config, given)
    elif name == "golden":
        command = partial(_golden, given.action)
    elif name == "service":
        command = partial(_service, given)
    elif name == "model":
        command = partial(_model, given)
    elif name == "update":
        command = partial(_update, given.file)
    elif name == "rollback":
        command = _rollback
    elif name == "cache":
        command = partial(_cache, given.action, given.json)
    elif name == "self-test":
        command = partial(_self_test, given.parts, given.json)
    elif name == "run" and (what := _asked_about(given)):
        return partial(_about, what), settings.Settings()
    default = config.DEFAULT_FILE if name in CONFIGURED else None
    if name == "check":
        problems: list[errors.EdgeappError] = []
        file = config.load(given, default=default, problems=problems)
        options = settings.from_arguments(given, file=file, problems=problems)
        if options.devices is not None and options.spool is not None:
            problems.append(_one_gpu("serve"))
        return partial(_check, problems, given.json), options
    options = settings.from_arguments(given, file=config.load(given, default=default))
    if options.devices is not None and hasattr(given, "device") and name not in SHARING:
        raise _one_gpu(name)
    return command, options


def _one_gpu(name: str) -> errors.UsageError:
    return errors.UsageError(f"{name} uses one GPU", "--device names several", "choose one: --device 0")


def _asked_about(given: argparse.Namespace) -> str:
    """What is to be told of the program itself, "" if nothing."""
    if getattr(given, "version", False):
        return "facts" if given.json else "version"
    if getattr(given, "json", False):
        raise errors.UsageError("--json needs --version", "results are JSON Lines anyway", "edgeapp --version --json")
    return next((what for what in ("sbom", "licenses") if getattr(given, what, False)), "")


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
        if not isinstance(error, MemoryError):
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
