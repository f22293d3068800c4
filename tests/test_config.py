"""The configuration file: strict, every mistake with its line, and never stronger than flags and variables."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Program

from edgeapp import config, errors, settings
from edgeapp.commands.config import template


def parse(words: list[str], environment: dict[str, str], default: str | None = None) -> settings.Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    settings.add_options(parser)
    given = parser.parse_args(words)
    return settings.from_arguments(given, environment, config.load(given, environment, default=default))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], str]:
    """A writer of configuration files that nobody else may write."""

    def make(text: str | bytes) -> str:
        path = tmp_path / "config.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o644)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('engine = "/opt/m.plan"', "/opt/m.plan"),
        ("score_threshold = 0.4", 0.4),
        ('scale = "1/255"', 1 / 255),
        ("batch = 4", 4),
        ("batch = 0x10", 16),
        ('batch = "AUTO"', "auto"),
        ('input = ["a", "b"]', ("a", "b")),
        ('input = "a b"', ("a b",)),
        ("input = []", ()),
        ('color_order = "bgr"', "BGR"),
        ("recursive = true", True),
        ("antialias = false", False),
        ("mean = 0.5", [0.5]),
        ("mean = [0.485, 0.456, 1]", [0.485, 0.456, 1.0]),
        ('std = "1,2,3"', [1, 2, 3]),
        ("size_wh = [640, 480]", [640, 480]),
        ('size_wh = "640x480"', [640, 480]),
        ("size_wh = 320", [320, 320]),
        ('"top_k" = 3', 3),
        ("device = [3]", 3),
        ('\ufefflabels = "é.txt"\r\n', "é.txt"),
    ],
)
def test_value_is_what_its_flag_would_make(write: Callable[[str], str], line: str, value: object) -> None:
    """TOML's own numbers, truth values and lists, and texts as on the command line."""
    name = line.split(" ")[0].strip('"\ufeff')
    found = parse(["--config", write("# first\n\n" + line if line[0] != "\ufeff" else line)], {})
    assert {**vars(found), **found.card}[name] == value
    assert found.origins[name].endswith("config.toml:1" if line[0] == "\ufeff" else "config.toml:3")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("scor_threshold = 1", "unknown key scor_threshold, did you mean score_threshold?"),
        ("score-threshold = 1", "unknown key score-threshold, did you mean score_threshold?"),
        ("xyzzy = 1", "unknown key xyzzy"),
        ('config = "other.toml"', "unknown key config"),
        ("[serve]\nengine = 'x'", "unknown key serve"),
        ("[[serve]]\nengine = 'x'", "unknown key serve"),
        ("engine.name = 'x'", 'engine = {'),
        ("engine = 5", "engine = 5: text in quotes is wanted"),
        ('engine = ""', 'engine = "": a name is wanted'),
        (r'engine = "a\u0000b"', "a text without NUL is wanted"),
        ('engine = ["a", "b"]', "one value is wanted, no list"),
        ("engine = 2026-01-01", "text in quotes is wanted"),
        ("device = true", "device = true: a truth value is not wanted"),
        ("device = 1.0", "a whole number is wanted"),
        ("device = 0x" + "f" * 4000, "device = 0xfff"),
        ("device = -1", "0 to 1023 is allowed"),
        ('quiet = "yes"', 'quiet = "yes": true or false is wanted'),
        ("quiet = 1", "quiet = 1: true or false is wanted"),
        ("score_threshold = nan", "0 to 1 is allowed"),
        ("score_threshold = inf", "0 to 1 is allowed"),
        ("scale = 1e999", "is allowed"),
        ("batch = 1.5", "a whole number is wanted, or auto"),
        ("mean = [0.5, true, 0.5]", "one value is wanted, no list"),
        ("mean = [0.5, 0.5]", "one number or three"),
        ("mean = []", "one value is wanted, no list"),
        ("size_wh = [1, 2, 3]", "WIDTHxHEIGHT is wanted"),
        ("input = [1, 2]", "text in quotes is wanted"),
        ("input = [['a']]", "one value is wanted, no list"),
        ('task = "detekt"', "choose from classify, detect, raw"),
    ],
)  # fmt: skip
def test_wrong_value_names_file_line_key_and_reason(write: Callable[[str], str], line: str, says: str) -> None:
    """And the whole is a ConfigurationError, never a guess."""
    with pytest.raises(errors.ConfigurationError) as caught:
        parse(["--config", write(f"max_pixels = 5\n\n{line}\n")], {})
    assert f"{write('x')}:3: " in caught.value.what
    assert says in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("top_k = 1\ntop_k = 2", ":2:10", "there twice"),
        ("top_k = 1\ntop_k = 2\n# end\n", ":2:10", "there twice"),
        ("top_k =", ":1:8", "invalid value"),
        ("quiet = yes", ":1:9", "invalid value"),
        ('\nengine = "a', ":2:12", ""),
        ("input = ['a',", ":1", ""),
        ("\0", ":1:1", "invalid statement"),
        ("top_k = 1 2", ":1:11", ""),
        (b"# \xff\xfe", ":1", "0xff"),
        (b"top_k = 1\n# caf\xe9", ":2", "0xe9"),
        ("x = " + "[\n" * 5000, "", "nested too deeply"),
        ("a" * 5000, ":1", "4096 are allowed"),
        ("\n".join(["# comment"] * 30_000), "", "more than 256 KiB"),
    ],
    ids=lambda value: repr(value[:14]) if len(value) > 14 else None,
)
def test_text_that_is_no_toml_says_line_and_column(
    write: Callable[[str | bytes], str], text: str | bytes, place: str, why: str
) -> None:
    """Cut short, doubled, binary, huge, hostile: one error, at once."""
    path = write(text)
    found, [error] = config.read(path)
    assert found == {}
    assert type(error) is errors.ConfigurationError
    assert f"{path}{place}" in error.what
    assert why in error.why


def test_hostile_key_is_read_in_bearable_time_and_memory(write: Callable[[str], str]) -> None:
    """Python 3.11 takes 20 s and a gigabyte for one such key of 64 KiB; with lines of 4096 it cannot come to that."""
    _, [error] = config.read(write("a." * 2040 + "a = 1\n"))
    assert "unknown key a" in error.what or "nested too deeply" in error.why
    _, [error] = config.read(write("device." + "a." * 900 + "a = 1\n"))
    assert "device = {...}" in error.what or "nested too deeply" in error.why


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: None, errors.NotFoundError),
        (lambda path: path.symlink_to("nowhere"), errors.NotFoundError),
        (lambda path: path.mkdir(), errors.ConfigurationError),
        (lambda path: os.mkfifo(path), errors.ConfigurationError),
        (lambda path: path.symlink_to("/dev/zero"), errors.ConfigurationError),
        (lambda path: path.symlink_to(path.name), errors.InputOutputError),
    ],
    ids=["missing", "dangling", "folder", "pipe", "device", "circle"],
)
def test_path_that_is_no_file_is_an_error(tmp_path: Path, make: Callable[[Path], Any], kind: type) -> None:
    """A pipe without a writer does not hang."""
    path = tmp_path / "config.toml"
    make(path)
    found, [error] = config.read(str(path))
    assert (found, type(error)) == ({}, kind)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_name_that_no_file_can_have_is_not_found(name: str) -> None:
    """From an environment variable or a flag anything can come."""
    assert [type(error) for error in config.read(name)[1]] == [errors.NotFoundError]


def test_unreadable_file_is_a_matter_of_permission(source_program: Program, write: Callable[[str], str]) -> None:
    """Exit code 77, not 78."""
    path = write("top_k = 1")
    os.chmod(path, 0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert source_program("config", "show", "--config", path).returncode == 77


def test_every_problem_is_found_and_the_rest_is_kept(write: Callable[[str], str]) -> None:
    """So that `check` can tell them all at once."""
    found, wrong = config.read(write("top_k = 3\nwrong = 1\ndevice = true\niou_threshold = 0.5\n"))
    assert [error.what.split(":")[1] for error in wrong] == ["2", "3"]
    assert {name: given.value for name, given in found.items()} == {"top_k": 3, "iou_threshold": 0.5}


def test_line_is_that_of_the_statement_not_of_a_text_that_looks_like_one(write: Callable[[str], str]) -> None:
    """Texts of several lines are not searched for keys."""
    _, wrong = config.read(write('labels = """\ntask = "x"\n"""\n# task = "y"\ntask = "z"\n'))
    assert [error.what.split(":")[1] for error in wrong] == ["5"]


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o664, 0o646])
@pytest.mark.parametrize("line", ['plugin = "a.so"', "allow_host_code = true", 'tensorrt_library = "l.so"'])
def test_option_that_lets_code_run_counts_only_in_a_file_of_root(
    write: Callable[[str], str], line: str, mode: int
) -> None:
    """Whoever else may write the file would run code as whoever starts the program."""
    path = write(line)
    os.chmod(path, mode)
    found, wrong = config.read(path)
    trusted = os.stat(path).st_uid == 0 and not mode & 0o022
    assert (len(found), len(wrong)) == ((1, 0) if trusted else (0, 1))
    if os.geteuid() == 0:
        os.chmod(path, 0o644)
        os.chown(path, 12345, 12345)
        _, [error] = config.read(path)
        assert "lets code run" in error.why


@pytest.mark.parametrize(
    ("words", "environment", "value", "origin"),
    [
        (["--top-k", "1"], {"EDGEAPP_TOP_K": "2"}, 1, "--top-k"),
        ([], {"EDGEAPP_TOP_K": "2"}, 2, "EDGEAPP_TOP_K"),
        ([], {"EDGEAPP_TOP_K": ""}, 3, "config.toml:1"),
        ([], {}, 3, "config.toml:1"),
    ],
)
def test_flag_beats_environment_beats_file(
    write: Callable[[str], str], words: list[str], environment: dict[str, str], value: int, origin: str
) -> None:
    """And each says where it came from."""
    found = parse([*words, "--config", write("top_k = 3")], environment)
    assert found.card["top_k"] == value
    assert found.origins["top_k"].endswith(origin)
    assert "device" not in found.origins


def test_file_of_the_environment_and_the_default_one_are_read(tmp_path: Path, write: Callable[[str], str]) -> None:
    """EDGEAPP_CONFIG is as good as --config; the default file is read only where it is."""
    path = write("device = 7")
    assert parse([], {"EDGEAPP_CONFIG": path}).device == 7
    found = parse([], {}, default=path)
    assert (found.device, found.config, found.origins["config"]) == (7, path, "default")
    assert parse([], {}, default=str(tmp_path / "missing")).config is None
    assert parse([], {}) == settings.Settings()


def test_command_without_the_option_reads_no_file() -> None:
    """`inspect` with EDGEAPP_CONFIG set for the service is not stopped by it."""
    assert config.load(argparse.Namespace(), {"EDGEAPP_CONFIG": "/missing"}, default="/etc") == {}


def test_template_is_a_configuration_that_says_nothing(write: Callable[[str], str]) -> None:
    """Every option is in it, and uncommented the defaults are the defaults."""
    text = "".join(template())
    assert config.read(write(text)) == ({}, [])
    lines = {line[1:].split(" = ")[0]: line[1:] for line in text.splitlines() if line[:1] == "#" and line[1:2] != " "}
    assert set(lines) == {option.name for option in settings.OPTIONS if option.file_too}
    defaults = [option for option in settings.OPTIONS if option.default is not None and option.file_too]
    found, wrong = config.read(write("\n".join(lines[option.name] for option in defaults)))
    assert not [error for error in wrong if "lets code run" not in error.why]
    assert all(tuple(given.value) == settings.Settings.__dataclass_fields__[name].default
               if isinstance(given.value, list)
               else given.value == settings.Settings.__dataclass_fields__[name].default
               for name, given in found.items())  # fmt: skip
    _, broken = config.read(write("\n".join(lines.values())))
    assert not [error for error in broken if "no TOML" in error.what]


def test_show_prints_a_configuration_with_origins(program: Program, write: Callable[[str], str]) -> None:
    """What is shown, read again, gives the same settings; in the frozen file, too."""
    path = write('engine = "é \\"x\\"\\t\\U0001F600.plan"\nmean = [0, 0.5, 1]\n')
    words = ("--config", path, "--top-k", "3")
    done = program("config", "show", "--origin", *words, env={"EDGEAPP_DEVICE": "2,0"})
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(line.rsplit("  # ", 1) for line in done.stdout.splitlines())
    rows = {key.strip(): origin for key, origin in rows.items()}
    assert rows["mean = [0.0, 0.5, 1.0]"] == f"{path}:2"
    assert (rows["device = [2, 0]"], rows["top_k = 3"]) == ("EDGEAPP_DEVICE", "--top-k")
    assert rows["quiet = false"] == "default"
    assert rows["# batch has no value"] == "default"

    again = path + ".again"
    Path(again).write_text(done.stdout)
    os.chmod(again, 0o600)
    if os.geteuid() == 0:  # else the options that let code run are refused, though they are off
        found = parse(["--config", again], {})
        wanted = parse(list(words), {"EDGEAPP_DEVICE": "2,0"})
        assert {**vars(found), "config": None, "origins": None} == {**vars(wanted), "config": None, "origins": None}


def test_show_as_json_has_value_and_origin_of_every_option(
    source_program: Program, write: Callable[[str], str]
) -> None:
    """One object; a value that is not set is null."""
    line = source_program("config", "show", "--json", "--config", write("device = 3")).line
    assert set(line["settings"]) == {option.name for option in settings.OPTIONS}
    assert line["settings"]["device"] == {"value": 3, "origin": f"{write('')}:1"}
    assert line["settings"]["batch"] == {"value": None, "origin": "default"}


def test_template_of_the_command_is_that_of_the_module(source_program: Program) -> None:
    """`edgeapp config template` prints it, and needs nothing."""
    done = source_program("config", "template")
    assert (done.returncode, done.stdout) == (0, "".join(template()))


def test_run_takes_its_settings_from_the_file(source_program: Program, models: Path, picture: Path) -> None:
    """And an error in it ends the run before anything is done."""
    file = source_program.cwd / "c.toml"
    file.write_text(f"engine = {json.dumps(str(models / 'classifier.onnx'))}\ntop_k = 2\nquiet = true\n")
    done = source_program("--config", file, "--input", picture)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.line["classes"]) == 2
    file.write_text("tpo_k = 2\n")
    done = source_program("--config", file, "--input", picture)
    assert (done.returncode, done.stdout) == (78, "")
    assert "c.toml:1: unknown key tpo_k, did you mean top_k?" in done.stderr
