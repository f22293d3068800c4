"""Signed models: what is refused before any engine sees it, and that edgeapp and Debian's minisign agree.

What needs a GPU to be tried for real (TensorRT with plugins and host code) is tried on stand-ins, named as such.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from support import ROOT, Program, write_keys, write_signature
from test_bootstrap import has_driver

from edgeapp import errors, minisign, paths, plan, settings, trust
from edgeapp.bootstrap import Trace
from edgeapp.commands import opening
from edgeapp.commands import run as run_command
from edgeapp.gpu import engine as gpu_engine
from edgeapp.log import Talk
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

PLANS = ROOT / "tests" / "gpu" / "plans"
NOT_SIGNED = b"untrusted comment: "


@pytest.fixture
def maker(tmp_path: Path) -> Path:
    """maker.key and maker.pub, and the same of a stranger."""
    write_keys(tmp_path / "maker", 1)
    write_keys(tmp_path / "stranger", 2)
    return tmp_path


@pytest.fixture
def signed(maker: Path, models: Path) -> Path:
    """A model for the CPU with its signature."""
    path = maker / "model.onnx"
    shutil.copy(models / "classifier.onnx", path)
    write_signature(path, maker / "maker.key")
    return path


@pytest.fixture
def signed_plan(maker: Path) -> Path:
    """A plan as Ultralytics wraps it, signed as a whole."""
    path = maker / "model.engine"
    text = json.dumps({"task": "detect", "names": {"0": "bolt"}}).encode()
    path.write_bytes(len(text).to_bytes(4, "little") + text + (PLANS / "yolov8.plan").read_bytes())
    write_signature(path, maker / "maker.key")
    return path


def options(engine: Path, **more: Any) -> Settings:
    """Settings that demand the maker's signature."""
    given = {"trust_key": (str(engine.parent / "maker.pub"),), "require_signature": True, "quiet": True}
    return Settings(engine=str(engine), input=("none.npy",), **given | more)


def check(engine: Path, **more: Any) -> tuple[bytes | None, list[str]]:
    """What trust.check() gives and says."""
    said: list[str] = []
    given: dict[str, Any] = {"keys": [str(engine.parent / "maker.pub")], "required": False, "sha256": None, "card": {}}
    wanted = trust.demands(**given | more)
    return trust.check(str(engine), wanted, said.append, lambda: None), said


def words_of(path: Path) -> list[str | Path]:
    """Flags that run a signed model."""
    return ["--engine", path, "--input", "x.npy", "--task", "raw", "--output", "y.npz",
            "--require-signature", "--trust-key", path.parent / "maker.pub"]  # fmt: skip


# --- with Debian's minisign ------------------------------------------------------------------------------------------


@pytest.fixture
def debian_minisign() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs minisign; skips the test without it, unless EDGEAPP_REQUIRE_MINISIGN says it must be there."""
    command = shutil.which("minisign")
    if command is None:
        if os.environ.get("EDGEAPP_REQUIRE_MINISIGN") == "1":
            pytest.fail("minisign is missing: apt-get install minisign")
        pytest.skip("minisign is missing: apt-get install minisign")

    def run(*words: str | Path, typed: str = "", good: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [command, *words],
            input=typed,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            timeout=60,
        )
        assert (done.returncode == 0) == good, done
        return done

    return run


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """locked.key and locked.pub of minisign -G, opened by the passphrase "open sesame"; made once, it takes seconds."""
    folder = tmp_path_factory.mktemp("locked")
    if shutil.which("minisign"):
        subprocess.run(
            ["minisign", "-G", "-s", folder / "locked.key", "-p", folder / "locked.pub"],
            input=b"open sesame\n" * 2, capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        (folder / "passphrase").write_text("open sesame\n")
    return folder


@pytest.mark.parametrize("name", ["model.plan", "mödel 2.plan", "a\nb.plan", os.fsdecode(b"\xff.plan")], ids=ascii)
def test_minisign_verifies_what_edgeapp_signed(
    program: Program, maker: Path, debian_minisign: Callable[..., Any], name: str
) -> None:
    """By key and trusted comment; a byte more, and it does not."""
    path = maker / name
    path.write_bytes(b"any file at all")
    done = program("sign", "--key", maker / "maker.key", path)
    assert done.returncode == 0, done
    told = debian_minisign("-V", "-p", maker / "maker.pub", "-m", path).stdout
    assert "Signature and comment signature verified" in told
    assert re.search(rf"timestamp:\d+\tfile:{re.escape(paths.printable(name))}\thashed", told)
    debian_minisign("-V", "-p", maker / "stranger.pub", "-m", path, good=False)
    path.write_bytes(b"any file at all.")
    debian_minisign("-V", "-p", maker / "maker.pub", "-m", path, good=False)


def test_edgeapp_runs_what_minisign_signed(
    program: Program, signed: Path, debian_minisign: Callable[..., Any], tmp_path: Path
) -> None:
    """With a key that minisign made: by its file and by its characters."""
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    debian_minisign("-G", "-f", "-W", "-s", tmp_path / "maker.key", "-p", tmp_path / "maker.pub")
    debian_minisign("-S", "-W", "-s", tmp_path / "maker.key", "-m", signed)
    done = program(*words_of(signed))
    assert done.returncode == 0, done
    number = re.search(r"public key ([0-9A-F]+)", (tmp_path / "maker.pub").read_text())
    assert number is not None
    assert f"model.onnx is signed by key {number[1]}" in done.stderr
    text = (tmp_path / "maker.pub").read_text().splitlines()[1]
    assert program(*words_of(signed), "--trust-key", text).returncode == 0
    signed.write_bytes(signed.read_bytes() + b"\0")
    assert program(*words_of(signed)).returncode == 78


def test_keys_of_these_tests_are_those_of_minisign(
    maker: Path, signed: Path, debian_minisign: Callable[..., Any]
) -> None:
    """write_keys() stands in for minisign -G -W: minisign signs and verifies with them."""
    debian_minisign("-V", "-p", maker / "maker.pub", "-m", signed)
    debian_minisign("-S", "-W", "-s", maker / "maker.key", "-m", signed)
    assert "is signed by key 101010101010101" in check(signed)[1][0]


def test_edgeapp_signs_with_an_encrypted_key(
    program: Program, locked: Path, maker: Path, debian_minisign: Callable[..., Any]
) -> None:
    """minisign's scrypt and edgeapp's open the same key."""
    (maker / "a.plan").write_bytes(b"a")
    done = program("sign", "--key", locked / "locked.key", "--passphrase-file", locked / "passphrase", maker / "a.plan")
    assert done.returncode == 0, done
    debian_minisign("-V", "-p", locked / "locked.pub", "-m", maker / "a.plan")


def test_wrong_passphrase_is_told(
    source_program: Program, locked: Path, maker: Path, debian_minisign: Callable[..., Any]
) -> None:
    """78, and nothing is written."""
    (maker / "a.plan").write_bytes(b"a")
    (maker / "passphrase").write_text("open parsley\n")
    words = ("sign", "--key", locked / "locked.key", "--passphrase-file", maker / "passphrase", maker / "a.plan")
    done = source_program(*words)
    assert done.returncode == 78, done
    assert "the passphrase is wrong" in done.stderr
    assert not (maker / "a.plan.minisig").exists()
    done = source_program(*words[:3], maker / "a.plan")
    assert done.returncode == 78, done
    assert "there is no terminal" in done.stderr


def at_terminal(command: list[str], env: dict[str, str]) -> tuple[int, int]:
    """Start a program on a terminal of its own: (process, the terminal's other end)."""
    process, end = pty.fork()
    if process == 0:
        os.execve(command[0], command, env)
    return process, end


def shown(end: int, until: bytes, timeout_s: float = 30) -> bytes:
    """What appears on a terminal up to some words, or to its end."""
    os.set_blocking(end, False)
    seen, late = b"", time.monotonic() + timeout_s
    while until not in seen and time.monotonic() < late:
        try:
            seen += os.read(end, 4096)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # the program is gone
            break
    return seen


def test_passphrase_is_asked_on_the_terminal_and_not_shown(
    source_program: Program, locked: Path, maker: Path, debian_minisign: Callable[..., Any]
) -> None:
    """Typed after the question; the question is not part of the outputs."""
    (maker / "a.plan").write_bytes(b"a")
    words = ["sign", "--key", str(locked / "locked.key"), str(maker / "a.plan")]
    process, end = at_terminal([*source_program.command, *words], source_program.env)
    asked = shown(end, b"locked.key: ")
    assert b"passphrase of" in asked
    os.write(end, b"open sesame\n")
    rest = shown(end, b"no such words")
    assert os.waitpid(process, 0)[1] == 0, rest
    assert b"sesame" not in asked + rest
    debian_minisign("-V", "-p", locked / "locked.pub", "-m", maker / "a.plan")


def test_interrupt_ends_the_question(
    source_program: Program, locked: Path, maker: Path, debian_minisign: Callable[..., Any]
) -> None:
    """Ctrl-C while the passphrase is asked for ends the program by SIGINT."""
    (maker / "a.plan").write_bytes(b"a")
    words = ["sign", "--key", str(locked / "locked.key"), str(maker / "a.plan")]
    process, end = at_terminal([*source_program.command, *words], source_program.env)
    assert b"passphrase of" in shown(end, b"locked.key: ")
    os.write(end, b"\x03")
    shown(end, b"no such words")
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGINT


def test_older_form_of_signature_is_refused(signed: Path, debian_minisign: Callable[..., Any]) -> None:
    """minisign -l signs the file and not its hash; nobody needs that any more, and it is told how to sign anew."""
    debian_minisign("-S", "-W", "-l", "-s", signed.parent / "maker.key", "-m", signed)
    with pytest.raises(errors.ConfigurationError, match="cannot use the signature") as caught:
        check(signed)
    assert "edgeapp sign" in caught.value.fix


# --- a thousand flipped files ----------------------------------------------------------------------------------------


class EngineStandIn:
    """Takes the place of bring_up(), behind which CUDA and TensorRT are; counts how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[plan.ModelFile] = []
        monkeypatch.setattr(opening, "bring_up", self.bring_up)

    def bring_up(self, model_file: plan.ModelFile, **_: Any) -> Any:
        self.files.append(model_file)
        raise InterruptedError("the stand-in has no engine")


def free_comment(data: bytes) -> range:
    """Where the text of the untrusted comment lies, which nobody signs."""
    return range(len(NOT_SIGNED), data.index(b"\n")) if data.startswith(NOT_SIGNED) else range(0)


def test_thousand_flipped_files_are_refused_before_any_engine_sees_them(
    signed_plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit anywhere in the plan (with its wrapper), the signature or the key: no engine is asked for."""
    stand_in = EngineStandIn(monkeypatch)
    files = {"plan": signed_plan, "signature": Path(f"{signed_plan}.minisig"), "key": signed_plan.parent / "maker.pub"}
    rng, codes, stop = random.Random(7), Counter[int](), Stop()
    with pytest.raises(InterruptedError):
        run_command.run(options(signed_plan), stop, Talk(quiet=True))
    assert len(stand_in.files) == 1, "the unflipped file gets through"
    for name, count in (("plan", 400), ("signature", 400), ("key", 200)):
        whole = files[name].read_bytes()
        bits = [bit for bit in range(8 * len(whole)) if bit // 8 not in free_comment(whole)]
        for bit in rng.sample(bits, count):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            files[name].write_bytes(flipped)
            with pytest.raises(errors.EdgeappError) as caught:
                run_command.run(options(signed_plan), stop, Talk(quiet=True))
            codes[caught.value.exit_code] += 1
            assert caught.value.exit_code == 78 or (name == "plan" and caught.value.exit_code == 65), (name, bit)
        files[name].write_bytes(whole)
    assert len(stand_in.files) == 1
    assert codes.total() == 1000
    assert codes[78] > 990, "few flips hit the first bytes, by which a plan is told from other files"


def test_untrusted_comment_may_be_anything(signed: Path) -> None:
    """It is not signed, as its name says, for minisign neither."""
    beside = Path(f"{signed}.minisig")
    lines = beside.read_bytes().split(b"\n")
    beside.write_bytes(b"\n".join([NOT_SIGNED + b"what you like", *lines[1:]]))
    assert check(signed)[0] == signed.read_bytes()


def test_refused_model_is_never_seen_by_onnx_runtime(signed: Path) -> None:
    """The real program, the real library: it is not even loaded."""
    signed.write_bytes(signed.read_bytes() + b"\0")
    code = (
        "import sys\nfrom edgeapp.cli import main\n"
        f"try:\n    main({[str(word) for word in words_of(signed)]!r})\n"
        "except SystemExit as end:\n    assert end.code == 78, end.code\n"
        "print([name for name in sys.modules if name.startswith(('onnxruntime', 'tensorrt', 'pycuda'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "its signature by key" in done.stderr


def test_inspect_loads_only_what_is_signed(program: Program, signed: Path) -> None:
    """--engine makes an engine as `run` does; without it nothing is loaded and nothing has to be verified."""
    pin = ("--require-signature", "--trust-key", signed.parent / "maker.pub")
    assert program("inspect", "--engine", signed, *pin).returncode == 0
    signed.write_bytes(signed.read_bytes() + b"\x12\0")  # an empty producer_name: an ONNX model still
    done = program("inspect", "--engine", signed, *pin)
    assert done.returncode == 78, done
    assert (done.stdout, "its signature by key" in done.stderr) == ("", True)
    assert program("inspect", signed).returncode == 0


def test_check_is_a_step_of_the_start_before_the_engine(program: Program, signed: Path, tmp_path: Path) -> None:
    """--startup-trace shows it, and in which order."""
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    done = program(*words_of(signed), "--startup-trace")
    assert done.returncode == 0, done
    assert 0 < done.stderr.index("verify the engine file") < done.stderr.index("load the ONNX model")


# --- what was checked is what runs -----------------------------------------------------------------------------------


def verified(path: Path) -> plan.ModelFile:
    """The file after the check, as `run` has it."""
    model_file = plan.identify(str(path))
    return opening.verified(model_file, {}, options(path), Talk(quiet=True), Stop())


def test_model_that_is_changed_after_the_check_does_not_run(
    signed: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes in memory run, whatever the file has become in the meantime: here as soon as its check is over."""
    check = trust.check

    def check_and_exchange(*words: Any) -> bytes | None:
        data = check(*words)
        shutil.copy(models / "conv.onnx", signed)
        return data

    monkeypatch.setattr(trust, "check", check_and_exchange)
    found = plan.identify(str(signed))
    with opening.open_engine(found, {}, options(signed), Trace(), Talk(quiet=True), Stop()) as (engine, _):
        assert [spec.name for spec in engine.outputs] == ["logits"]
    assert plan.identify(str(signed)).checked is None, "without a check the file itself is read"


class RuntimeStandIn:
    """Stands for an IRuntime of TensorRT: keeps what it was given."""

    engine_host_code_allowed: Any = None

    def __init__(self, registry: Any = None) -> None:
        self.bytes = b""
        self.registry = registry

    def deserialize_cuda_engine(self, view: Any) -> str:
        self.bytes = bytes(view)
        return "an engine"

    def load_runtime(self, file: str) -> RuntimeStandIn:
        return RuntimeStandIn()

    def get_plugin_registry(self) -> Any:
        return self.registry


def test_plan_that_is_changed_after_the_check_is_not_deserialised(signed_plan: Path) -> None:
    """TensorRT (a stand-in) gets the plan inside the signed file, without the wrapper, and memory is let go."""
    model_file = verified(signed_plan)
    signed_plan.write_bytes((PLANS / "conv.plan").read_bytes())
    runtime = RuntimeStandIn()
    assert gpu_engine.deserialise(runtime, None, model_file) == "an engine"
    assert runtime.bytes == (PLANS / "yolov8.plan").read_bytes()
    assert model_file.metadata["names"] == {"0": "bolt"}
    with pytest.raises(AssertionError):
        model_file.checked.take()  # type: ignore[union-attr]


def test_what_a_file_is_is_told_from_the_checked_bytes(
    signed_plan: Path, maker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is exchanged between the first look and the check is what it was when it was checked."""
    model_file = plan.identify(str(signed_plan))
    shutil.copy(PLANS / "conv.plan", signed_plan)
    write_signature(signed_plan, maker / "maker.key")
    checked = opening.verified(model_file, {}, options(signed_plan), Talk(quiet=True), Stop())
    assert (model_file.offset > 0, checked.offset, checked.metadata) == (True, 0, {})


def test_weights_outside_of_a_checked_model_are_refused(
    signed: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing covers them; without a check they are read from beside the model, as ever."""
    from edgeapp.cpu.engine import CpuEngine

    model = onnx.load(models / "classifier.onnx")
    onnx.save(model, signed, save_as_external_data=True, location="weights.bin", size_threshold=0)
    write_signature(signed, tmp_path / "maker.key")
    monkeypatch.chdir(tmp_path)
    assert CpuEngine(str(signed)).outputs
    model_file = verified(signed)
    assert model_file.checked is not None
    with pytest.raises(errors.DataError, match="its weights lie in another file"):
        CpuEngine(str(signed), model_file.checked.take())


def test_signal_ends_the_check_of_a_large_file(signed: Path) -> None:
    """It is looked for between pieces of the file."""

    def stopped() -> None:
        raise errors.Stopped

    wanted = trust.demands(keys=[str(signed.parent / "maker.pub")], required=True, sha256=None, card={})
    with pytest.raises(errors.Stopped):
        trust.check(str(signed), wanted, lambda _: None, stopped)


# --- who is trusted --------------------------------------------------------------------------------------------------


def test_unsigned_engine_is_refused_only_where_that_is_asked(program: Program, models: Path, maker: Path) -> None:
    """Without --require-signature it runs, and a given key that found nothing to verify is mentioned."""
    import numpy as np

    np.save(maker / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    path = maker / "model.onnx"
    shutil.copy(models / "classifier.onnx", path)
    done = program(*words_of(path))
    assert done.returncode == 78, done
    assert "it is not signed, and a signature is required" in done.stderr
    done = program(*(word for word in words_of(path) if word != "--require-signature"))
    assert done.returncode == 0, done
    assert "model.onnx is not signed; --require-signature would refuse it" in done.stderr
    assert check(path, keys=[]) == (None, [])


def test_wrong_signature_is_refused_even_where_none_is_asked_for(signed: Path) -> None:
    """A key is trusted and a signature is there: that is enough to look."""
    signed.write_bytes(signed.read_bytes() + b"\0")
    with pytest.raises(errors.ConfigurationError, match="its signature by key 101010101010101 is wrong"):
        check(signed)
    data, said = check(signed, keys=[])
    assert data is None, "no key is trusted: nothing to verify with"
    assert "is not verified: no key is trusted" in said[0]


def test_signature_without_any_key_is_an_error_where_one_is_required(signed: Path) -> None:
    """It is not taken for granted."""
    with pytest.raises(errors.ConfigurationError, match="a signature is required, and no key is trusted"):
        check(signed, keys=[], required=True)


def test_unknown_key_is_named(signed: Path) -> None:
    """Both: the one that signed, and those that are trusted."""
    with pytest.raises(errors.ConfigurationError, match="by key 101010101010101, which is not trusted") as caught:
        check(signed, keys=[str(signed.parent / "stranger.pub")])
    assert "202020202020202" in caught.value.why


def test_key_of_the_same_number_proves_nothing(signed: Path) -> None:
    """The number is copied easily; another key with it does not verify, and does not hide the right one."""
    other = base64.b64decode((signed.parent / "stranger.pub").read_text().splitlines()[1])
    twin = base64.b64encode(b"Ed" + b"\1" * 8 + other[10:]).decode()
    with pytest.raises(errors.ConfigurationError, match="is wrong"):
        check(signed, keys=[twin])
    assert check(signed, keys=[twin, str(signed.parent / "maker.pub")])[0]


@pytest.mark.parametrize("file", ["other.onnx", "current.onnx"])
def test_name_under_which_it_was_signed_is_told(signed: Path, file: str) -> None:
    """A renamed model runs: its name is no part of what is signed, but people should know."""
    path = signed.with_name(file)
    shutil.copy(signed, path)
    shutil.copy(f"{signed}.minisig", f"{path}.minisig")
    assert check(path)[1][0].endswith("; it was signed as model.onnx")
    assert "signed as" not in check(signed)[1][0]


def test_signature_of_another_file_is_refused(signed: Path, maker: Path) -> None:
    """Two signed files, their signatures exchanged."""
    (maker / "b.onnx").write_bytes(b"b")
    shutil.copy(write_signature(maker / "b.onnx", maker / "maker.key"), f"{signed}.minisig")
    with pytest.raises(errors.ConfigurationError, match="is wrong"):
        check(signed)


def test_altered_trusted_comment_is_refused(signed: Path) -> None:
    """It has a signature of its own, made over the file's signature too."""
    beside = Path(f"{signed}.minisig")
    beside.write_bytes(beside.read_bytes().replace(b"timestamp:17", b"timestamp:18"))
    with pytest.raises(errors.ConfigurationError, match="is wrong") as caught:
        check(signed)
    assert "trusted comment" in caught.value.why


# --- installed keys and the model card -------------------------------------------------------------------------------


@pytest.fixture
def keys_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /etc/edgeapp/keys.d, which only root may write."""
    folder = tmp_path / "keys.d"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(trust, "KEYS_FOLDER", str(folder))
    return folder


def test_installed_keys_are_trusted(signed: Path, keys_folder: Path) -> None:
    """Every *.pub; other files there are not looked at."""
    (keys_folder / "README").write_bytes(b"\xff")
    assert check(signed, keys=[])[0] is None
    shutil.copy(signed.parent / "stranger.pub", keys_folder)
    with pytest.raises(errors.ConfigurationError, match="not trusted here"):
        check(signed, keys=[])
    shutil.copy(signed.parent / "maker.pub", keys_folder)
    data, said = check(signed, keys=[], required=True)
    assert data == signed.read_bytes()
    assert str(keys_folder / "maker.pub") in said[0]


def test_given_keys_come_on_top_of_installed_ones(signed: Path, keys_folder: Path) -> None:
    """No flag takes an installed key away."""
    shutil.copy(signed.parent / "maker.pub", keys_folder)
    assert check(signed, keys=[str(signed.parent / "stranger.pub")])[0]


def test_installed_key_that_is_none_is_an_error(signed: Path, keys_folder: Path) -> None:
    """It is named; it is not skipped, which could leave the machine with fewer checks than its keeper thinks."""
    (keys_folder / "broken.pub").write_text("nonsense\n")
    with pytest.raises(errors.ConfigurationError, match=r"broken\.pub"):
        check(signed)


@pytest.mark.parametrize("what", ["the folder", "a key"])
def test_keys_that_anybody_may_write_are_no_keys(signed: Path, keys_folder: Path, what: str) -> None:
    """Then nobody knows who put them there."""
    shutil.copy(signed.parent / "maker.pub", keys_folder)
    (keys_folder if what == "the folder" else keys_folder / "maker.pub").chmod(0o777)
    with pytest.raises(errors.ConfigurationError, match="cannot trust the keys"):
        check(signed)


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """As another user, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_key_that_may_not_be_read_is_told(signed: Path, keys_folder: Path) -> None:
    """77, installed or given: it is not passed over."""
    shutil.copy(signed.parent / "maker.pub", keys_folder)
    (keys_folder / "maker.pub").chmod(0)
    with without_rights(), pytest.raises(errors.NotPermittedError):
        trust.demands(keys=[str(keys_folder / "maker.pub")], required=False, sha256=None, card={})
    keys_folder.chmod(0)
    try:
        with without_rights(), pytest.raises(errors.NotPermittedError):
            trust.installed_keys(str(keys_folder))
    finally:
        keys_folder.chmod(0o755)


def public(path: Path) -> str:
    return path.read_text().splitlines()[1]


def test_key_of_the_card_narrows_and_never_widens(signed: Path) -> None:
    """It has to be trusted anyway; then a signature by it is demanded, and by no other trusted key."""
    maker, stranger = signed.parent / "maker.pub", signed.parent / "stranger.pub"
    of_maker, of_stranger = {"trust_key": public(maker)}, {"trust_key": public(stranger)}
    with pytest.raises(errors.ConfigurationError, match="the model card wants a signature by key 1010"):
        check(signed, keys=[], card=of_maker)
    with pytest.raises(errors.ConfigurationError, match="the model card wants a signature by key 1010"):
        check(signed, keys=[str(stranger)], card=of_maker)
    assert check(signed, keys=[str(stranger), str(maker)], card=of_maker)[0]
    with pytest.raises(errors.ConfigurationError, match="not trusted here"):
        check(signed, keys=[str(stranger), str(maker)], card=of_stranger)
    Path(f"{signed}.minisig").unlink()
    with pytest.raises(errors.ConfigurationError, match="a signature is required"):
        check(signed, card=of_maker)


def test_digest_of_flag_and_card_pin_the_file(program: Program, signed: Path, tmp_path: Path) -> None:
    """Either alone, and both together; the flag does not overrule the card."""
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    right, wrong = hashlib.sha256(signed.read_bytes()).hexdigest(), "0" * 64
    for flag, card, code in (
        (right, None, 0), (right.upper(), right, 0), (None, right, 0), (wrong, None, 78), (None, wrong, 78),
        (right, wrong, 78), (wrong, right, 78), (right[:-1], None, 78), ("ü" * 64, None, 78), (None, right[:-1], 78),
        (f"{right}0", None, 78),
    ):  # fmt: skip
        (tmp_path / "model.json").write_text(json.dumps({"sha256": card} if card else {}))
        pin = ["--engine-sha256", flag] if flag else []
        done = program("--engine", signed, "--input", "x.npy", "--task", "raw", "--output", "y.npz", *pin)
        assert done.returncode == code, (flag, card, done)
        assert code == 0 or "SHA-256" in done.stderr or "sha256" in done.stderr


@pytest.mark.parametrize("key", ["allow_host_code", "plugin", "require_signature", "engine_sha256"])
def test_card_cannot_say_what_only_the_operator_may(
    source_program: Program, signed: Path, tmp_path: Path, key: str
) -> None:
    """Neither by these names nor by others: the card's keys are listed in its schema."""
    (tmp_path / "model.json").write_text(json.dumps({key: True}))
    done = source_program(*words_of(signed))
    assert done.returncode == 78, done
    assert "unknown key" in done.stderr


# --- files that are no keys and no signatures ------------------------------------------------------------------------

GOOD = base64.b64encode(b"Ed" + bytes(40)).decode()
OTHER_SPELLING = base64.b64encode(b"ED" + bytes(72)).decode()[:-2] + "B="  # decodes to the same bytes
FOUR = f"untrusted comment: x\n{base64.b64encode(b'ED' + bytes(72)).decode()}\ntrusted comment: y\n"
OF_COMMENT = base64.b64encode(bytes(64)).decode()

SPELLED = f"untrusted comment: x\n{OTHER_SPELLING}\ntrusted comment: y\n{OF_COMMENT}\n"

BROKEN_SIGNATURES = {
    "empty": b"",
    "garbage": os.urandom(200),
    "huge": b"a" * 20_000,
    "only newlines": b"\n" * 4,
    "cut short": f"{FOUR}{OF_COMMENT[:-5]}".encode(),
    "three lines": FOUR.encode(),
    "five lines": f"{FOUR}{OF_COMMENT}\n\n".encode(),
    "no base64": f"{FOUR}{'!' * 88}\n".encode(),
    "base64 in another spelling": SPELLED.encode(),
    "spaces": f"{FOUR} {OF_COMMENT}\n".encode(),
    "of another algorithm": f"{FOUR}{OF_COMMENT}".replace("RUQA", "RUUA").encode(),
    "a public key": f"untrusted comment: x\n{GOOD}\n".encode(),
    "a zero byte more": f"{FOUR}{OF_COMMENT}\n\0".encode(),
}


@pytest.mark.parametrize("data", BROKEN_SIGNATURES.values(), ids=BROKEN_SIGNATURES)
def test_broken_signature_is_refused(signed: Path, data: bytes) -> None:
    """By what it is, with a way out."""
    Path(f"{signed}.minisig").write_bytes(data)
    with pytest.raises(errors.ConfigurationError, match=r"cannot use .*model\.onnx\.minisig") as caught:
        check(signed)
    assert caught.value.why
    assert caught.value.fix


def test_weak_key_verifies_nothing(signed: Path) -> None:
    """With a key of small order, all zeros, anybody could make signatures: libsodium refuses it."""
    Path(f"{signed}.minisig").write_text(f"{FOUR}{OF_COMMENT}\n")
    with pytest.raises(errors.ConfigurationError, match="is wrong"):
        check(signed, keys=[GOOD])


def test_signature_in_lines_of_windows_is_read(signed: Path) -> None:
    """As minisign does: an editor or git may have changed the ends of lines."""
    beside = Path(f"{signed}.minisig")
    beside.write_bytes(beside.read_bytes().replace(b"\n", b"\r\n"))
    assert check(signed)[0]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_signature_that_is_no_file_is_an_error(signed: Path, kind: str) -> None:
    """Something is there: it is not taken for a missing one, and nothing hangs."""
    beside = Path(f"{signed}.minisig")
    beside.unlink()
    {"folder": beside.mkdir, "pipe": lambda: os.mkfifo(beside), "link to nothing": lambda: beside.symlink_to("x")}[
        kind
    ]()
    with pytest.raises(errors.EdgeappError) as caught:
        check(signed)
    assert caught.value.exit_code == (66 if kind == "link to nothing" else 78)


BROKEN_KEYS = {
    "empty": b"",
    "garbage": os.urandom(100),
    "huge": b"RW" * 4000,
    "too short": GOOD[:-4].encode(),
    "too long": f"{GOOD}AAAA".encode(),
    "two keys": f"{GOOD}\n{GOOD}\n".encode(),
    "only a comment": b"untrusted comment: minisign public key\n",
    "of another algorithm": base64.b64encode(b"RS" + bytes(40)),
    "a secret key": base64.b64encode(b"Ed" + bytes(156)),
}


@pytest.mark.parametrize("data", BROKEN_KEYS.values(), ids=BROKEN_KEYS)
def test_broken_public_key_is_refused(signed: Path, data: bytes) -> None:
    """Even where no signature is there to be verified with it."""
    (signed.parent / "bad.pub").write_bytes(data)
    Path(f"{signed}.minisig").unlink()
    with pytest.raises(errors.ConfigurationError, match=r"cannot use .*bad\.pub"):
        check(signed, keys=[str(signed.parent / "bad.pub")])


def test_missing_key_is_told(program: Program, signed: Path) -> None:
    """66; and 64 for an empty name."""
    assert program(*words_of(signed), "no.pub").returncode == 66
    assert program(*words_of(signed), "").returncode == 64


def secret(stem: Path, change: Callable[[bytearray], None]) -> bytes:
    """A secret key of write_keys() with its bytes changed."""
    raw = bytearray(base64.b64decode(stem.with_suffix(".key").read_text().splitlines()[1]))
    change(raw)
    return b"untrusted comment: x\n" + base64.b64encode(raw) + b"\n"


def scrypt(opslimit: int, memlimit: int) -> Callable[[bytearray], None]:
    def change(raw: bytearray) -> None:
        raw[2:4] = b"Sc"
        raw[38:54] = opslimit.to_bytes(8, "little") + memlimit.to_bytes(8, "little")

    return change


def flip(index: int) -> Callable[[bytearray], None]:
    return lambda raw: raw.__setitem__(index, raw[index] ^ 1)


BROKEN_SECRETS: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "cut short": (lambda raw: raw.pop(), "no secret key"),
    "another algorithm": (flip(0), "no secret key"),
    "another encryption": (flip(2), "no secret key"),
    "damaged seed": (flip(62), "damaged"),
    "damaged public half": (flip(94), "damaged"),
    "scrypt wants all memory": (scrypt(1 << 25, 1 << 60), "it asks scrypt for"),
    "scrypt wants all time": (scrypt(1 << 60, 1 << 30), "it asks scrypt for"),
    "scrypt wants nothing": (scrypt(0, 0), "it asks scrypt for"),
    "wrong passphrase": (scrypt(1 << 15, 1 << 24), "the passphrase is wrong"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN_SECRETS.values(), ids=BROKEN_SECRETS)
def test_broken_secret_key_is_refused(maker: Path, change: Callable[[bytearray], None], words: str) -> None:
    """Before scrypt is given what would exhaust the machine."""
    with pytest.raises(errors.ConfigurationError) as caught:
        minisign.parse_secret_key(secret(maker / "maker", change), "x.key", lambda: b"x")
    assert words in caught.value.why


def test_sign_says_what_is_wrong(program: Program, maker: Path) -> None:
    """Each mistake has its code; files before it are signed, and no parts are left."""
    (maker / "a.plan").write_bytes(b"a")
    key = ("sign", "--key", maker / "maker.key")
    for words, code, said in (
        (("sign", "a.plan"), 64, "--key"),
        (key, 64, "FILE"),
        ((*key, "no.plan"), 66, "no such file"),
        ((*key, maker), 65, "no regular file"),
        ((*key, "a.plan", "no.plan"), 66, "no.plan"),
        (("sign", "--key", "no.key", "a.plan"), 66, "no.key"),
        (("sign", "--key", maker / "maker.pub", "a.plan"), 78, "no secret key"),
        (("sign", "--key", "a.plan", "a.plan"), 78, "no secret key"),
    ):
        done = program(*words, cwd=maker)
        assert done.returncode == code, (words, done)
        assert said in done.stderr
    assert sorted(path.name for path in maker.glob("a.plan*")) == ["a.plan", "a.plan.minisig"]
    (maker / "b.plan").write_bytes(b"b")
    (maker / "b.plan.minisig").mkdir()
    assert program(*key, maker / "b.plan").returncode == 73


# --- host code and plugins -------------------------------------------------------------------------------------------


def trt_stand_in() -> Any:
    """Stands for TensorRT's module."""
    return SimpleNamespace(Runtime=lambda logger: RuntimeStandIn())


def test_host_code_is_denied_unless_asked_for() -> None:
    """In the runtime and in the one of an older TensorRT inside it."""
    log = SimpleNamespace(errors=[])
    runtime = gpu_engine.create_runtime(trt_stand_in(), log)
    assert runtime.engine_host_code_allowed is False
    assert gpu_engine.load_guest(runtime, None, "x").engine_host_code_allowed is False
    runtime = gpu_engine.create_runtime(trt_stand_in(), log, host_code=True)
    assert runtime.engine_host_code_allowed is True
    assert gpu_engine.load_guest(runtime, None, "x", host_code=True).engine_host_code_allowed is True


def test_only_a_flag_lets_code_run() -> None:
    """The environment, which is easily overlooked, does not."""
    import argparse

    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    environment = {"EDGEAPP_ALLOW_HOST_CODE": "1", "EDGEAPP_PLUGIN": "x.so", "EDGEAPP_REQUIRE_SIGNATURE": "1"}
    found = settings.from_arguments(parser.parse_args([]), environment)
    assert (found.allow_host_code, found.plugin, found.require_signature) == (False, (), True)
    found = settings.from_arguments(parser.parse_args(["--allow-host-code", "--plugin", "a.so", "b.so"]), {})
    assert (found.allow_host_code, found.plugin) == (True, ("a.so", "b.so"))


@pytest.fixture
def library(tmp_path: Path) -> Callable[..., Path]:
    """A maker of small shared libraries."""

    def make(name: str, *words: str | Path) -> Path:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler")
        command = [compiler, "-shared", "-fPIC", "-x", "c", "/dev/null", "-x", "none", *words, "-o", tmp_path / name]
        subprocess.run(command, check=True)
        return tmp_path / name

    return make


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
def test_code_that_may_run_is_said_before_the_driver_is_asked(
    program: Program, signed_plan: Path, library: Callable[..., Path]
) -> None:
    """Even with --quiet, and by its SHA-256; the plan's signature has been verified before."""
    plugin = library("libplugin.so")
    digest = hashlib.sha256(plugin.read_bytes()).hexdigest()
    more = ("--plugin", plugin, "--allow-host-code", "--quiet")
    done = program(*words_of(signed_plan), *more)
    assert done.returncode == 69, done
    assert f"libplugin.so may run its code, SHA-256 {digest}" in done.stderr
    assert "may run native code that it carries" in done.stderr
    signed_plan.write_bytes(signed_plan.read_bytes()[:-1])
    assert "may run" not in program(*words_of(signed_plan), *more).stderr
    done = program("--engine", PLANS / "conv.plan", "--input", "x.npy")
    assert "may run" not in done.stderr


def test_plugin_that_is_none_is_told(program: Program, signed_plan: Path, signed: Path) -> None:
    """Before the driver is asked."""
    (signed_plan.parent / "text.so").write_text("no library")
    for file, code, said in (("no.so", 66, "no such file"), ("text.so", 65, "no shared library"), (".", 78, "regular")):
        done = program(*words_of(signed_plan), "--plugin", signed_plan.parent / file)
        assert done.returncode == code, done
        assert said in done.stderr
    done = program(*words_of(signed), "--plugin", "x.so")
    assert done.returncode == 64, done
    assert "--plugin goes with a plan" in done.stderr
    assert program(*words_of(signed), "--allow-host-code").returncode == 64


class RegistryStandIn:
    """Stands for TensorRT 10's IPluginRegistry: takes any library, or none."""

    def __init__(self, answer: Any) -> None:
        self.loaded: list[str] = []
        self.answer = answer

    def load_library(self, path: str) -> Any:
        self.loaded.append(path)
        return self.answer


def test_plugin_is_loaded_by_its_path_and_entered_into_the_registry(
    library: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare name means the file here, not one of that name on the library path; old registries fill themselves."""
    library("libplugin_here.so")
    monkeypatch.chdir(tmp_path)
    registry = RegistryStandIn("a handle")
    log = SimpleNamespace(errors=["it has no getCreators"])
    gpu_engine.load_plugin(RuntimeStandIn(registry), log, "libplugin_here.so")
    assert registry.loaded == [str(tmp_path / "libplugin_here.so")]
    assert "libplugin_here.so" in Path("/proc/self/maps").read_text()
    gpu_engine.load_plugin(RuntimeStandIn(object()), log, "libplugin_here.so")
    with pytest.raises(errors.DataError, match="cannot use the plugin") as caught:
        gpu_engine.load_plugin(RuntimeStandIn(RegistryStandIn(None)), log, "libplugin_here.so")
    assert caught.value.why == "it has no getCreators"


def test_plugin_that_cannot_be_loaded_says_what_is_missing(library: Callable[..., Path], tmp_path: Path) -> None:
    """As for a plugin of a TensorRT that is not there."""
    needed = library("libnvinfer_of_another.so")
    plugin = library("libplugin.so", "-Wl,--no-as-needed", f"-L{tmp_path}", f"-l:{needed.name}")
    needed.unlink()
    with pytest.raises(errors.DataError) as caught:
        gpu_engine.load_plugin(RuntimeStandIn(RegistryStandIn("a handle")), None, str(plugin))
    assert "libnvinfer_of_another.so" in caught.value.why
    with pytest.raises(errors.NotFoundError):
        gpu_engine.load_plugin(RuntimeStandIn(RegistryStandIn("a handle")), None, str(tmp_path / "no.so"))
