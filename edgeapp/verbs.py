"""The commands: what each is for, its arguments, and what it calls; what it needs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgeapp import errors
from edgeapp.log import Talk
from edgeapp.settings import OPTIONS, OUT, SERVICE, TRUSTED, TRUSTING, Settings
from edgeapp.stopping import Stop

TALK = ("quiet", "debug")


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        help: what it is for, in a line.
        call: runs it; `given` has its own arguments, and `words`, all that was said. Returns the exit code.
        options: names of those that it takes.
        arguments: adds its own.
        epilog: what its help ends with.
        configured: it reads config.DEFAULT_FILE when no other is named.
        several_gpus: it can use them.
    """

    help: str
    call: Callable[[argparse.Namespace, Settings, Stop, Talk], int]
    options: Sequence[str]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None
    epilog: str = ""
    configured: bool = False
    several_gpus: bool = False


def _as_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON Lines")


# --- run, demo, bench -------------------------------------------------------------------------------------------------


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    about = parser.add_argument_group("about this program")
    one = about.add_mutually_exclusive_group()
    one.add_argument("--version", action="store_true", help="print the version and end")
    one.add_argument("--sbom", action="store_true", help="print all that is inside, as CycloneDX JSON, and end")
    one.add_argument("--licenses", action="store_true", help="print the licence texts of all that and end")
    about.add_argument("--json", action="store_true", help="with --version: of everything that matters, as JSON")


def _run(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    if what := asked_about(given):
        from edgeapp.commands.about import about

        return about(what)
    from edgeapp.commands.run import run

    return run(options, stop, talk)


def asked_about(given: argparse.Namespace) -> str:
    """What is to be told of the program itself, "" if nothing.

    Raises:
        UsageError: it is said how, but not what.
    """
    if getattr(given, "version", False):
        return "facts" if given.json else "version"
    what = next((what for what in ("sbom", "licenses") if getattr(given, what, False)), "")
    if not what and hasattr(given, "sbom") and given.json:
        raise errors.UsageError("--json needs --version", "results are JSON Lines anyway", "edgeapp --version --json")
    return what


def _demo(_: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.demo import demo

    return demo(options, stop, talk)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from edgeapp.commands.bench_wanted import add_arguments

    add_arguments(parser)


def _bench(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.bench import bench
    from edgeapp.commands.bench_wanted import wanted_of

    if given.spin:
        options = replace(options, sync="spin")
    if given.inference_streams:
        options = replace(options, streams=given.inference_streams)
    return bench(wanted_of(given), options, stop, talk)


# --- the service ------------------------------------------------------------------------------------------------------


def _serve(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.serve import serve

    return serve(options, given.again, stop, talk)


def _ctl_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "do",
        choices=("status", "reload", "pause", "resume", "drain"),
        help="status: print all that is known, as JSON; reload: load what the configuration names now, beside the "
        "present model; pause: begin nothing new; resume; drain: finish what was begun, then end",
    )
    parser.add_argument("--wait", action="store_true", help="with reload: until the new model serves; exit as it went")


def _ctl(given: argparse.Namespace, options: Settings, _: Stop, __: Talk) -> int:
    from edgeapp.commands.ctl import ctl

    return ctl(given.do, given.wait, options)


def _retry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="in SPOOL/failed; all of them if none is named")


def _retry(given: argparse.Namespace, options: Settings, _: Stop, talk: Talk) -> int:
    from edgeapp.commands.retry import retry

    return retry(given.names, options, talk)


def _service_arguments(parser: argparse.ArgumentParser) -> None:
    from edgeapp.commands.service import add_arguments

    add_arguments(parser)


def _service(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.service import service

    return service(given, options, stop, talk)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    from edgeapp.commands.models import add_arguments

    add_arguments(parser)


def _model(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.models import model

    return model(given, replace(options, engine=given.file), stop, talk)


def _update_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="another edgeapp, for this kind of machine")


def _update(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.update import update

    return update(given.file, options, stop, talk)


def _rollback(_: argparse.Namespace, __: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.update import rollback

    return rollback(stop, talk)


# --- looking and checking ---------------------------------------------------------------------------------------------


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="plans, ONNX models or anything else")
    _as_json(parser)


def _inspect(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.inspect import inspect

    if given.files and given.engine:
        raise errors.UsageError("files and --engine go not together", "", "name --engine FILE alone")
    return inspect(given.files, given.json, options, stop, talk)


def _runtimes(given: argparse.Namespace, options: Settings, _: Stop, __: Talk) -> int:
    from edgeapp.commands.runtimes import runtimes

    return runtimes(given.json, options.tensorrt_library)


SIGN = """The format is minisign's: minisign -V verifies what this writes, and edgeapp what minisign -S writes.
minisign -G makes a pair of keys; machines that run the model get the public one, into /etc/edgeapp/keys.d
or by --trust-key.

example: edgeapp sign --key maker.key model.plan"""


def _sign_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="plan or .onnx model; any file")
    parser.add_argument("--key", required=True, metavar="K", help="secret key of minisign")
    parser.add_argument(
        "--passphrase-file", default="", metavar="FILE", help="its first line opens the key; else the terminal is asked"
    )


def _sign(given: argparse.Namespace, _: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.sign import sign

    return sign(given.key, given.files, given.passphrase_file, stop, talk)


def _doctor(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.doctor import doctor

    return doctor(given.json, options, stop, talk)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _check(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.check import check

    return check(given.problems, given.json, options, stop, talk)


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "template"),
        help="show: the settings as they would be used; template: a file with every option, commented out",
    )
    parser.add_argument("--origin", action="store_true", help="show of each value where it came from")
    parser.add_argument("--json", action="store_true", help="show as one JSON object")


def _config(given: argparse.Namespace, options: Settings, _: Stop, __: Talk) -> int:
    from edgeapp.commands.config import config

    return config(given.action, options, origin=given.origin, as_json=given.json)


def _golden_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(action="print")
    action = parser.add_mutually_exclusive_group()
    for word, text in (
        ("write", "keep it in the model card, which is made if need be"),
        ("check", "compare with what the model card keeps"),
    ):
        action.add_argument(f"--{word}", dest="action", action="store_const", const=word, help=text)


def _golden(given: argparse.Namespace, options: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.golden import golden

    return golden(given.action, options, stop, talk)


def _cache_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("path", "list", "verify", "clear"),
        help="path: print the folder; list: what it holds; verify: compare every file with its SHA-256; "
        "clear: remove what no running program uses",
    )
    _as_json(parser)


def _cache(given: argparse.Namespace, _: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.commands.cache import cache

    return cache(given.action, given.json, stop, talk)


def _self_test_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="numpy, pillow, pynacl, onnxruntime, tensorrt or libraries"
    )
    _as_json(parser)


def _self_test(given: argparse.Namespace, _: Settings, stop: Stop, __: Talk) -> int:
    from edgeapp.commands.selftest import self_test

    return self_test(given.parts, given.json, stop)


def _names(*, without: Sequence[str] = (), groups: Sequence[str] = ()) -> tuple[str, ...]:
    """All options but those named, and those of some groups."""
    return tuple(option.name for option in OPTIONS if option.name not in without and option.group not in groups)


CARD = tuple(option.name for option in OPTIONS if option.card)

VERBS = {
    "run": Verb("run a model on pictures or tensors (the default)", _run, _names(groups=(SERVICE,)), _run_arguments,
                several_gpus=True),
    "serve": Verb("take inputs from a folder, for years: results on the disk first, then the input moves", _serve,
                  _names(without=("input", "recursive", "live", "output", "save", "startup_trace", "max_delay_ms")),
                  configured=True),
    "ctl": Verb("ask or tell a running service: status, reload, pause, resume, drain", _ctl,
                ("control", "spool", *TALK), _ctl_arguments),
    "retry": Verb("put inputs that failed back into the folder of the service", _retry, ("spool", "watch", *TALK),
                  _retry_arguments),
    "bench": Verb("measure how fast a model runs here, how fast it could, and what stands between", _bench,
                  _names(without=("live",), groups=(OUT, SERVICE)), _bench_arguments, several_gpus=True),
    "demo": Verb("find parts in the pictures that come with the program", _demo,
                 ("engine", "input", "device", "output", "save", *TALK, "startup_trace")),
    "inspect": Verb("tell what a model file is and whether it runs here, from its bytes; needs no GPU", _inspect,
                    ("engine", "device", "tensorrt_library", *TRUSTING, *TALK), _inspect_arguments),
    "runtimes": Verb("list the TensorRT libraries inside and on this machine, and which plans each runs", _runtimes,
                     ("tensorrt_library", *TALK), _as_json),
    "sign": Verb("write FILE.minisig, the signature that --require-signature wants", _sign, TALK, _sign_arguments,
                 SIGN),
    "doctor": Verb("look at driver, GPUs, rights, disks, clock, heat; with --engine try the model; say what to do",
                   _doctor, ("engine", "model_card", "device", "tensorrt_library", *TRUSTING, *TALK), _as_json),
    "check": Verb("say everything that is wrong with a configuration, before anything is started; needs no GPU",
                  _check, _names(), _check_arguments, configured=True, several_gpus=True),
    "config": Verb("show the settings and where each comes from, or print a configuration file to fill in", _config,
                   _names(), _config_arguments, configured=True, several_gpus=True),
    "golden": Verb("keep in the model card what the model answers, so that it is recognised wherever it runs",
                   _golden, ("engine", "model_card", "device", "tensorrt_library", *TRUSTING, *CARD, *TALK),
                   _golden_arguments),
    "service": Verb("install the program as a service of systemd, remove it, look at it", _service,
                    ("engine", "model_card", *TRUSTED, *TALK), _service_arguments),
    "model": Verb("give the service another model, or the one before", _model, ("model_card", *TRUSTED, *TALK),
                  _model_arguments),
    "update": Verb("put another version of the program in place of the installed one", _update,
                   ("trust_key", "require_signature", *TALK), _update_arguments),
    "rollback": Verb("go back to the version before the last update", _rollback, TALK),
    "cache": Verb("look at the folder into which this file unpacks itself: path, list, verify, clear", _cache, TALK,
                  _cache_arguments),
    "self-test": Verb("load everything that is inside, without a GPU: does this file fit this machine", _self_test,
                      TALK, _self_test_arguments),
}  # fmt: skip
