"""Every option once: flag > EDGEAPP_* environment variable > configuration file > default."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeapp.errors import EdgeappError, UsageError

DEFAULT_MAX_PIXELS = 100_000_000
"""Larger pictures are refused from their header: 100 megapixels are 300 MB of memory."""


@dataclass(frozen=True)
class Option:
    """One option: its flag is --name-with-dashes, its variable EDGEAPP_NAME.

    Attributes:
        parse: text to value; raises ValueError with a reason. None for an on/off flag.
        card: the option overrides the key of the same name in the model card.
        variable_too: whether the environment may set it, which stays unseen in a command line; a configuration file
            may only when nobody but root can have written it.
        joined: what stands between the numbers of a value that has several; a configuration file may give a list.
        file_too: whether a configuration file may set it.
    """

    name: str
    help: str
    parse: Callable[[str], Any] | None = str
    metavar: str = ""
    default: Any = None
    many: bool = False
    card: bool = False
    group: str = "what to run"
    variable_too: bool = True
    joined: str = ""
    file_too: bool = True

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "EDGEAPP_" + self.name.upper()


def choice(*words: str) -> Callable[[str], str]:
    """A parser for one of `words`, in any case."""

    def parse(text: str) -> str:
        for word in words:
            if text.lower() == word.lower():
                return word
        raise ValueError(f"choose from {', '.join(words)}")

    return parse


def integer(low: int, high: int) -> Callable[[str], int]:
    """A parser for a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError("a whole number is wanted") from None
        if not low <= value <= high:
            raise ValueError(f"{low} to {high} is allowed")
        return value

    return parse


def auto_or(parse: Callable[[str], int]) -> Callable[[str], int | str]:
    """A parser for the word auto, or what another takes."""

    def either(text: str) -> int | str:
        try:
            return text.lower() if text.lower() == "auto" else parse(text)
        except ValueError as error:
            raise ValueError(f"{error}, or auto") from None

    return either


def number(low: float, high: float) -> Callable[[str], float]:
    """A parser for a number from `low` to `high`; fractions such as 1/255 are understood."""

    def parse(text: str) -> float:
        top, _, bottom = text.partition("/")
        try:
            value = float(top) / float(bottom or 1)
        except (ValueError, ZeroDivisionError):
            raise ValueError("a number is wanted") from None
        if not low <= value <= high:
            raise ValueError(f"{low:g} to {high:g} is allowed")
        return value

    return parse


def numbers(text: str) -> list[float]:
    """One number or three, separated by commas."""
    values = [number(-1e9, 1e9)(part) for part in text.split(",")]
    if len(values) not in (1, 3):
        raise ValueError("one number or three, separated by commas, are wanted")
    return values


def divisors(text: str) -> list[float]:
    """One number or three, all above zero."""
    values = numbers(text)
    if min(values) <= 0:
        raise ValueError("numbers above zero are wanted")
    return values


def gpus(text: str) -> int | tuple[int, ...]:
    """A GPU's number; several, separated by commas; or () for the word all."""
    if text.lower() == "all":
        return ()
    try:
        found = tuple(integer(0, 1023)(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{error}; N, a list such as 0,2,3, or all") from None
    if len(set(found)) < len(found):
        raise ValueError("a GPU is named twice")
    return found if len(found) > 1 else found[0]


def size_wh(text: str) -> list[int]:
    """WIDTHxHEIGHT in pixels, or one number for a square."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2):
        raise ValueError("WIDTHxHEIGHT is wanted")
    values = [integer(1, 16384)(part) for part in parts]
    return values * 2 if len(values) == 1 else values


def name(text: str) -> str:
    """A file or folder."""
    if not text:
        raise ValueError("a name is wanted")
    return text


def truth(text: str) -> bool:
    """yes or no, from an environment variable."""
    word = text.lower()
    if word in ("1", "yes", "true", "on"):
        return True
    if word in ("0", "no", "false", "off", ""):
        return False
    raise ValueError("yes or no is wanted")


SPEED = "how it is made fast"
OUT, CARD, TALK = "what comes out", "what the model wants (wins over its card)", "what is said"
TRUST, SERVICE = "which files are trusted", "the service"

OPTIONS = (
    Option("engine", "TensorRT plan to run on the GPU, or .onnx model to run on the CPU; of a folder of plans the one "
           "that fits this GPU and the runtimes here", name, metavar="FILE"),
    Option("input", "pictures, folders, globs, .npy/.npz tensors; - reads paths from standard input; mjpeg:PATH, or "
           "mjpeg:- for standard input, is a stream of JPEGs", metavar="PATH", many=True),
    Option("recursive", "look into the folders of folders too", None),
    Option("live", "of a stream take the newest picture each time, leave out those that came meanwhile, and count them",
           None, default=False),
    Option("model_card", "the model card (default: STEM.json or model.json beside the engine)", name, metavar="FILE"),
    Option("device", "GPU number; run and bench take several, 0,2,3 or all: they share the inputs, results keep order",
           gpus, "N", 0, joined=","),
    Option("batch", "pictures per inference (default: what the engine was built for, else 1); auto: what its "
           "optimisation profile was tuned for", auto_or(integer(1, 4096)), "N|auto"),
    Option("tensorrt_library", "a libnvinfer_lean.so to use instead of those inside; its code runs", name,
           metavar="FILE", variable_too=False),
    Option("max_pixels", "refuse larger pictures", integer(1, 1 << 31), "N", DEFAULT_MAX_PIXELS),
    Option("exact_decode", "decode every JPEG in full, also where antialiased resizing halves it at least", None,
           default=False),
    Option("output", "write results to FILE.jsonl, .csv or .npz instead of standard output (-)",
           name, metavar="FILE", many=True, group=OUT),
    Option("save", "write annotated pictures into this folder", name, metavar="DIR", group=OUT),
    Option("task", "classify, detect or raw (every output tensor)", choice("classify", "detect", "raw"),
           "TASK", card=True, group=CARD),
    Option("labels", "text file, a class name a line", metavar="FILE", card=True, group=CARD),
    Option("size_wh", "network input WIDTHxHEIGHT, pixels", size_wh, "WxH", card=True, group=CARD, joined="x"),
    Option("resize", "letterbox, stretch or center_crop", choice("letterbox", "stretch", "center_crop"),
           "HOW", card=True, group=CARD),
    Option("antialias", "area-aware resizing as Pillow does it (--no-antialias: plain bilinear)", None,
           card=True, group=CARD),
    Option("crop_fraction", "center_crop: network size / shorter side before the cut", number(0.01, 1), "F",
           card=True, group=CARD),
    Option("color_order", "RGB, BGR or GRAY", choice("RGB", "BGR", "GRAY"), "ORDER", card=True, group=CARD),
    Option("layout", "NCHW or NHWC", choice("NCHW", "NHWC"), "LAYOUT", card=True, group=CARD),
    Option("scale", "tensor = (pixel * scale - mean) / std; 1/255 is understood", number(1e-9, 1e9), "F",
           card=True, group=CARD),
    Option("mean", "one number, or three for the channels", numbers, "F[,F,F]", card=True, group=CARD, joined=","),
    Option("std", "one number, or three for the channels", divisors, "F[,F,F]", card=True, group=CARD, joined=","),
    Option("pad_value", "grey of the letterbox's border", integer(0, 255), "N", card=True, group=CARD),
    Option("head", "detector output: yolov8, yolov5, yolox, end2end or nms",
           choice("yolov8", "yolov5", "yolox", "end2end", "nms"), "HEAD", card=True, group=CARD),
    Option("activation", "classify: softmax for logits, none for probabilities", choice("softmax", "none"),
           "HOW", card=True, group=CARD),
    Option("score_threshold", "leave out what scores less", number(0, 1), "F", card=True, group=CARD),
    Option("iou_threshold", "boxes that overlap more are one object", number(0, 1), "F", card=True, group=CARD),
    Option("max_detections", "at most this many objects a picture", integer(1, 100_000), "N",
           card=True, group=CARD),
    Option("top_k", "classify: how many classes to name", integer(1, 100_000), "K", card=True, group=CARD),
    Option("decode_threads",
           "threads that read and decode, those of all GPUs together (default: one for each core; from 8 cores a "
           "GPU on, one is left to each GPU)",
           integer(1, 1024), "N", group=SPEED),
    Option("slots", "batches between decoding and writing at a time (default: enough for all threads)",
           integer(1, 1024), "N", group=SPEED),
    Option("streams", "batches that the GPU computes at the same time, each with memory of its own", integer(1, 16),
           "N", 1, group=SPEED),
    Option("preprocess", "where pictures become network input: gpu, cpu or auto, which is gpu for a plan",
           choice("gpu", "cpu", "auto"), "WHERE", "auto", group=SPEED),
    Option("max_delay_ms", "wait so long for a batch to fill when standard input is silent", number(0, 60_000), "MS",
           0.0, group=SPEED),
    Option("sync", "how the GPU is waited for: spin (sooner, costs a core), block or auto",
           choice("spin", "block", "auto"), "HOW", "auto", group=SPEED),
    Option("trust_key", "trust signatures by this public key: a .pub file, or its 56 characters; "
           "beside those in /etc/edgeapp/keys.d", name, metavar="KEY", many=True, group=TRUST),
    Option("require_signature", "refuse an engine without FILE.minisig", None, default=False, group=TRUST),
    Option("engine_sha256", "refuse an engine with another SHA-256", name, metavar="HEX", group=TRUST),
    Option("plugin", "library with plugins that the plan needs; its code runs", name, metavar="FILE.so", many=True,
           group=TRUST, variable_too=False),
    Option("allow_host_code", "run native code that the plan brings along", None, default=False, group=TRUST,
           variable_too=False),
    Option("spool", "folder of the service: inputs come into DIR/in and go to DIR/done or DIR/failed, results to "
           "DIR/results (default: $STATE_DIRECTORY)", name, metavar="DIR", group=SERVICE),
    Option("watch", "take inputs from this folder instead of SPOOL/in; on the same file system", name, metavar="DIR",
           group=SERVICE),
    Option("listen", "take paths too, a line each, from clients of this Unix socket, or from standard input (-); each "
           "gets its result as a line, and its file stays where it is", name, metavar="SOCKET", group=SERVICE),
    Option("write", "jsonl: lines in SPOOL/results; json: NAME.json beside each input in SPOOL/done; pictures: "
           "NAME.annotated.jpg there", choice("jsonl", "json", "pictures"), "WHAT", ("jsonl",), many=True,
           group=SERVICE),
    Option("done", "what becomes of inputs that are done: move or delete", choice("move", "delete"), "HOW", "move",
           group=SERVICE),
    Option("attempts", "an input that was begun so often and never finished fails", integer(1, 1000), "N", 3,
           group=SERVICE),
    Option("settle_s", "a file of which nobody told that it is whole must not change for so long",
           number(0.01, 3600), "S", 2.0, group=SERVICE),
    Option("commit_ms", "wait so long for more results before they are written: for slow flash", number(0, 60_000),
           "MS", 0.0, group=SERVICE),
    Option("segment_mb", "results.jsonl is closed and named by its time when it is so large", integer(1, 1 << 20),
           "MB", 64, group=SERVICE),
    Option("segment_s", "or so old", number(1, 1e9), "S", 3600.0, group=SERVICE),
    Option("min_free_mb", "with less free space nothing new is begun", integer(1, 1 << 30), "MB", 64, group=SERVICE),
    Option("reload", "a new model is loaded beside the old one, or, where memory is short, swap: after it",
           choice("beside", "swap"), "HOW", "beside", group=SERVICE),
    Option("webhook", "send results to this http:// or https:// URL too: POST of JSON Lines, in order, at least once",
           name, metavar="URL", group=SERVICE),
    Option("webhook_headers", "file with HTTP headers for it, a line each, such as Authorization: Bearer ...", name,
           metavar="FILE", group=SERVICE),
    Option("mqtt", "send results to this broker too, mqtt://HOST[:PORT][/PREFIX] or mqtts://, as PREFIX/results; "
           "PREFIX is edgeapp/HOSTNAME if it is not given", name, metavar="URL", group=SERVICE),
    Option("mqtt_login", "file with USER:PASSWORD for it", name, metavar="FILE", group=SERVICE),
    Option("ca_file", "trust these certificate authorities alone (PEM; default: those of the system)", name,
           metavar="FILE", group=SERVICE),
    Option("http", "answer /healthz, /readyz, /metrics and show a page on 127.0.0.1:PORT or a Unix socket", name,
           metavar="ADDRESS", group=SERVICE),
    Option("metrics_file", "Prometheus text, written every 10 s (default: $RUNTIME_DIRECTORY/metrics.prom)", name,
           metavar="FILE", group=SERVICE),
    Option("control", "Unix socket that edgeapp ctl talks to (default: $RUNTIME_DIRECTORY/control.sock, else "
           "SPOOL/state/control.sock)", name, metavar="SOCKET", group=SERVICE),
    Option("log", "human lines, journal (with priorities) or json; auto: what fits standard error",
           choice("auto", "human", "journal", "json"), "FORM", "auto", group=SERVICE),
    Option("quiet", "say nothing but errors", None, default=False, group=TALK),
    Option("debug", "show stack traces and the log lines of TensorRT", None, default=False, group=TALK),
    Option("startup_trace", "print the milliseconds of each step of the start", None, default=False, group=TALK),
    Option("config", "TOML file with options, such as score_threshold = 0.4; flags and variables win", name, "FILE",
           group="where settings come from", file_too=False),
)  # fmt: skip

TRUSTING = tuple(option.name for option in OPTIONS if option.group == TRUST)
"""Options of every command that makes an engine of a user's file."""
TRUSTED = tuple(option for option in TRUSTING if option not in ("plugin", "allow_host_code"))
"""Those that say which files may run; the others say what a file may do."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        card: the options that override the model card.
        origins: option -> where its value came from: --batch, EDGEAPP_BATCH, config.toml:3; defaults are not in it.
        device: the GPU, the first one of several.
        devices: all of them when several were asked for, () for every GPU there is; None for `device` alone.
    """

    engine: str | None = None
    input: tuple[str, ...] = ()
    recursive: bool = False
    model_card: str | None = None
    device: int = 0
    devices: tuple[int, ...] | None = None
    tensorrt_library: str | None = None
    batch: int | str | None = None
    decode_threads: int | None = None
    slots: int | None = None
    streams: int = 1
    preprocess: str = "auto"
    max_delay_ms: float = 0.0
    sync: str = "auto"
    max_pixels: int = DEFAULT_MAX_PIXELS
    exact_decode: bool = False
    output: tuple[str, ...] = ()
    save: str | None = None
    trust_key: tuple[str, ...] = ()
    require_signature: bool = False
    engine_sha256: str | None = None
    plugin: tuple[str, ...] = ()
    allow_host_code: bool = False
    spool: str | None = None
    watch: str | None = None
    listen: str | None = None
    write: tuple[str, ...] = ("jsonl",)
    done: str = "move"
    attempts: int = 3
    settle_s: float = 2.0
    commit_ms: float = 0.0
    segment_mb: int = 64
    segment_s: float = 3600.0
    min_free_mb: int = 64
    reload: str = "beside"
    webhook: str | None = None
    webhook_headers: str | None = None
    mqtt: str | None = None
    mqtt_login: str | None = None
    ca_file: str | None = None
    http: str | None = None
    metrics_file: str | None = None
    control: str | None = None
    log: str = "auto"
    quiet: bool = False
    debug: bool = False
    startup_trace: bool = False
    live: bool = False
    config: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def gpus(self) -> int | str | tuple[int, ...]:
        """What --device was given: 0, (0, 2) or all."""
        return self.device if self.devices is None else self.devices or "all"


@dataclass(frozen=True)
class Given:
    """The value of an option in a configuration file, and where: FILE:LINE."""

    value: Any
    origin: str


def add_options(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """Add the options (all, or those named) to a parser, in their groups."""
    groups: dict[str, Any] = {}
    for option in OPTIONS:
        if names is not None and option.name not in names:
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        extra: dict[str, Any] = {"dest": option.name, "default": None, "help": option.help}
        if option.parse is None:
            plain = option.default is False or option.name == "recursive"
            extra["action"] = "store_true" if plain else argparse.BooleanOptionalAction
        else:
            extra["metavar"] = option.metavar
            extra["type"] = typed(option.parse)
            if option.many:
                extra.update(nargs="+", action="extend")
        groups[option.group].add_argument(option.flag, **extra)


def typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same parser, raising what argparse turns into a message with its reason."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error

    return checked


def from_arguments(
    arguments: argparse.Namespace,
    environment: Mapping[str, str] = os.environ,
    file: Mapping[str, Given] | None = None,
    problems: list[EdgeappError] | None = None,
) -> Settings:
    """Settings from parsed flags, then the environment, then the configuration file, then the defaults.

    Args:
        file: what config.read() found.
        problems: takes what is wrong, so that more can be looked for.

    Raises:
        UsageError: an environment variable has a value that its option does not take, and `problems` is None.
    """
    values: dict[str, Any] = {}
    card: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in OPTIONS:
        value, origin = getattr(arguments, option.name, None), option.flag
        text = environment.get(option.variable) if option.variable_too else None
        if value is None and text:  # empty is as good as unset
            try:
                value, origin = _from_text(option, text), option.variable
            except UsageError as error:
                if problems is None:
                    raise
                problems.append(error)
        if value is None and file and option.name in file:
            value, origin = file[option.name].value, file[option.name].origin
        if value is None:
            continue
        origins[option.name] = origin
        if option.card:
            card[option.name] = value
        else:
            values[option.name] = tuple(value) if option.many else value
    if isinstance(several := values.get("device"), tuple):
        values.update(device=several[0] if several else 0, devices=several)
    return Settings(**values, card=card, origins=origins)


def _from_text(option: Option, text: str) -> Any:
    parse = option.parse or truth
    try:
        return [parse(text)] if option.many else parse(text)
    except ValueError as error:
        raise UsageError(f"{option.variable}={text!r}: {error}", "", f"see edgeapp --help, {option.flag}") from error
