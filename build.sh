#!/usr/bin/env bash
# From a clone to dist/edgeapp: one file with Python, TensorRT and all the rest inside.
# Each verb is a function; `./build.sh help` lists them.
set -euo pipefail
shopt -s inherit_errexit # a failure inside $(...) ends the build too
cd "$(dirname "${BASH_SOURCE[0]}")"
ROOT=$PWD

# Pinned here and not in hooks/requirements*.txt: these are compiled or taken apart, not just installed.
PYCUDA=2026.1
LEAN8=8.6.0 # the only lean 8.x on PyPI; it serves plans of TensorRT 8.6.0
LEAN11=11.4.0.106
# Headers decide which driver PyCUDA needs: those of CUDA 13 turn cuCtxCreate into cuCtxCreate_v4 and
# cuEventElapsedTime into cuEventElapsedTime_v2, which r535 to r575 drivers lack; those of 12.x ask for nothing
# that r535, TensorRT's own floor for CUDA 12, does not have.
CUDA_HEADERS_12="nvidia-cuda-runtime-cu12==12.2.140 nvidia-cuda-profiler-api-cu12==12.2.140"
CUDA_HEADERS_13="nvidia-cuda-runtime==13.0.96 nvidia-cuda-profiler-api==13.0.85"
# zstd 1.5.7 as one C file: of this sdist only the folder zstd/ is used. The wheel of the same version packs.
ZSTANDARD=0.25.0
ZSTANDARD_SHA256=7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b

# NVIDIA's compiler as a library, 200 MB: it makes edgeapp/gpu/kernels/edgeapp.zip, which is committed, and is needed by
# nothing else. hooks/kernels.py says what each version is for.
NVRTC="nvidia-cuda-nvrtc-cu12==12.2.140 nvidia-cuda-nvrtc-cu12==12.8.93 nvidia-cuda-nvrtc==13.0.88"

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/edgeapp-build
MACHINE=$(uname -m)
CUDA=12
[[ $MACHINE != aarch64 ]] || CUDA=13 # TensorRT has no CUDA 12 wheels for aarch64

EX_USAGE=64 EX_UNAVAILABLE=69

# The time that everything frozen gets: that of the commit.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 1)}
export SOURCE_DATE_EPOCH
export PIP_QUIET=2 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\n== %s\n' "$*" >&2; }
run() {
  printf '+ %s\n' "$*" >&2
  "$@"
}
die() { # die CODE WHAT WHY FIX
  printf 'build.sh: %s\n  why: %s\n  fix: %s\n' "$2" "$3" "$4" >&2
  exit "$1"
}
need() { # need COMMAND WHAT_FOR PACKAGE
  command -v "$1" >/dev/null ||
    die $EX_UNAVAILABLE "cannot find $1" "it is needed $2" "sudo apt-get install $3"
}

# shellcheck source=hooks/build_root.sh
source hooks/build_root.sh # the verbs portable and aarch64

# --- Python ----------------------------------------------------------------------------------------

# Every Python that may be meant, best first: $PYTHON alone if it is set, else what python3 means, then by
# version, on the PATH or in pyenv's folders (its commands on the PATH refuse versions not switched on).
python_candidates() {
  if [[ -n ${PYTHON:-} ]]; then
    echo "$PYTHON"
    return
  fi
  echo python3
  local minor
  for minor in 13 12 11 10; do
    echo "python3.$minor"
    [[ -z ${PYENV_ROOT:-} ]] || compgen -G "$PYENV_ROOT/versions/3.$minor.*/bin/python3.$minor" || true
  done
}

# Prints "MINOR PATH: LACKS", LACKS being what must be installed before it can build; fails if no 3.10..3.13.
describe_python() {
  "$1" - 2>/dev/null <<'PY'
import importlib.util, os, sys, sysconfig

if not (3, 10) <= sys.version_info < (3, 14):
    raise SystemExit(1)
lacks = []
if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
    lacks.append("python3-venv")
value = sysconfig.get_config_var
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")  # PyCUDA is compiled against it
libpython = os.path.join(value("LIBDIR") or "", value("INSTSONAME") or "")  # PyInstaller bundles it
if not (os.path.isfile(header) and ".so" in libpython and os.path.isfile(libpython)):
    lacks.append("python3-dev")
print(sys.version_info.minor, f"{sys.executable}:", *lacks)
PY
}

# find_python [MINOR]: sets PYTHON_FOUND to a Python that can build, of version 3.MINOR if given, or to "".
find_python() {
  local candidate minor path lacks
  PYTHON_FOUND='' PYTHON_LACKS=''
  while read -r candidate; do
    read -r minor path lacks < <(describe_python "$candidate") || continue
    [[ ${1:-$minor} == "$minor" ]] || continue
    if [[ -z $lacks ]]; then
      PYTHON_FOUND=${path%:}
      return
    fi
    PYTHON_LACKS=${PYTHON_LACKS:-${path%:} lacks $lacks}
  done < <(python_candidates)
}

# --- setup: a virtual environment with what travels and what builds ----------------------------------

# Only what is pinned, and only wheels: no package of ours brings another, or runs a build script here.
pip_install() { # pip_install VENV ARGUMENT...
  run "$1/bin/python" -m pip install --no-deps --only-binary=:all: "${@:2}"
}

minor_of() { "$1/bin/python" -c 'import sys; print(sys.version_info.minor)'; }
site_of() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; }

# Prints the header folder of an installed CUDA toolkit, of the given major if one is given.
toolkit_headers() { # toolkit_headers [MAJOR]
  local folder nvcc
  nvcc=$(readlink -f "$(command -v nvcc || true)" || true)
  for folder in "${CUDA_HOME:-}" "${nvcc%/bin/nvcc}" /usr/local/cuda; do
    if grep -qsE "^#define CUDA_VERSION ${1:-[1-9][0-9]}[0-9]{3}\b" "$folder/include/cuda.h" &&
      [[ -f $folder/include/cudaProfiler.h ]]; then
      echo "$folder/include"
      return
    fi
  done
}

# Prints a folder with cuda.h of the CUDA major that TensorRT needs: an installed toolkit's, else PyPI's.
cuda_headers() { # cuda_headers VENV
  local folder pins=CUDA_HEADERS_$CUDA
  folder=$(toolkit_headers "$CUDA")
  if [[ -n $folder ]]; then
    echo "$folder"
    return
  fi
  folder=$CACHE/cuda-headers-$CUDA
  # shellcheck disable=SC2086 # a list
  pip_install "$1" --upgrade --target "$folder" ${!pins}
  mkdir -p "$folder/include"
  cp "$folder"/nvidia/*/include/{cuda,cudaProfiler}.h "$folder/include"
  echo "$folder/include"
}

# Compiles PyCUDA into a wheel and prints its path; the wheel is kept outside the tree, for it takes 90 s.
pycuda_wheel() { # pycuda_wheel VENV
  local venv=$1 kept work headers
  kept=$CACHE/pycuda-$PYCUDA-cp3$(minor_of "$venv")-cuda$CUDA-$MACHINE
  if compgen -G "$kept/*.whl"; then
    return
  fi
  need g++ "to compile PyCUDA" g++
  headers=$(cuda_headers "$venv")
  say "compiling PyCUDA $PYCUDA with $headers (about 90 s, once)"
  mkdir -p "$kept"
  work=$(mktemp -d "$kept/work.XXXXXX")
  # A stand-in for libcuda to link against: the real one comes with the driver, which this machine need not
  # have. It is empty but for its name; --no-as-needed keeps that name in the extension (Ubuntu's linker
  # drops it otherwise). So the import finds the driver by itself, or says that libcuda.so.1 is missing and
  # not "undefined symbol"; a program that loads libcuda.so.1 before the import is served all the same.
  run g++ -shared -nostdlib -Wl,-soname,libcuda.so.1 -x c /dev/null -o "$work/libcuda.so"
  (
    cd "$work"
    "$venv/bin/python" -m pip download --no-deps --no-build-isolation \
      --no-binary=pycuda "pycuda==$PYCUDA"
    tar xf pycuda-*.tar.gz
    cd "pycuda-$PYCUDA"
    # cuRAND would drag in a library of 100 MB, and nothing here draws random numbers on the GPU.
    printf '%s\n' "CUDA_ENABLE_CURAND = False" "CUDA_INC_DIR = ['$headers']" \
      "CUDADRV_LIB_DIR = ['$work']" >siteconf.py
    # -s: 16 MB of debug symbols less. --no-build-isolation: with the pinned NumPy and setuptools.
    LDFLAGS="-s -Wl,--no-as-needed" \
      run "$venv/bin/python" -m pip wheel --no-deps --no-build-isolation \
      --wheel-dir "$work" .
  )
  mv "$work"/*.whl "$kept"
  rm -r "$work"
  compgen -G "$kept/*.whl"
}

# A second and a third TensorRT lean beside the one that pip installs, whose packages have the same names: each is
# taken out of its wheels into folders of its own, tensorrt_lean11_libs for tensorrt_lean_libs, with the wheel's list
# and licence beside it. Of 8.6.0 only the library: TensorRT 10 loads it to run plans of TensorRT 8.6, and the Python
# module is for Python 3.10 and older.
install_lean_beside() { # install_lean_beside VENV MAJOR PIP_WORD...
  local venv=$1 major=$2 site folder
  site=$(site_of "$venv")
  folder=$CACHE/lean$major-$MACHINE-$("$venv/bin/python" -c 'import sys; print("cp3%d" % sys.version_info[1])')
  shift 2
  [[ -f $folder/complete && $(cat "$folder/complete") == "$*" ]] || {
    rm -rf "$folder"
    run "$venv/bin/python" -m pip download --no-deps --only-binary=:all: --dest "$folder" "$@"
    echo "$*" >"$folder/complete"
  }
  run "$venv/bin/python" - "$folder" "$site" "$major" <<'PY'
import pathlib, re, sys, zipfile

wheels, site, major = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
for file in sorted(wheels.glob("*.whl")):
    with zipfile.ZipFile(file) as wheel:
        names = wheel.namelist()
        package = next(name.split("/")[0] for name in names if re.match(r"tensorrt_lean(_\w+)?/", name))
        kind = package.removeprefix("tensorrt_lean") or "_libs"
        folder = site / f"tensorrt_lean{major}{kind}"
        folder.mkdir(exist_ok=True)
        for name in names:
            inside = pathlib.PurePath(name)
            module = kind == "_bindings" and inside.parent.name == package
            if module or ".so." in inside.name or inside.name in ("LICENSE.txt", "RECORD"):
                (folder / inside.name).write_bytes(wheel.read(name))
PY
}

# Makes the TensorRT packages of the host's Python visible in the virtual environment, and nothing else of it.
link_host_tensorrt() { # link_host_tensorrt PYTHON VENV
  run "$1" - "$(site_of "$2")" <<'PY'
import pathlib, sys
from importlib.util import find_spec

for name in ("tensorrt", "tensorrt_bindings", "tensorrt_libs"):
    if spec := find_spec(name):
        pathlib.Path(sys.argv[1], name).symlink_to(pathlib.Path(spec.origin).parent)
PY
}

# EDGEAPP_CUDA_STUBS=DIR, for tests only: its libcublas, libcublasLt and libcudnn in place of 1.1 GB of wheels.
# They are stand-ins: what is frozen with them can be looked at and started, and not relied upon.
install_stubs() { # install_stubs VENV
  local site
  site=$(site_of "$1")
  mkdir -p "$site/nvidia/cublas/lib" "$site/nvidia/cudnn/lib"
  run cp "$EDGEAPP_CUDA_STUBS"/libcublas*.so.* "$site/nvidia/cublas/lib"
  run cp "$EDGEAPP_CUDA_STUBS"/libcudnn*.so.* "$site/nvidia/cudnn/lib"
}

# make_venv PYTHON VENV FLAVOUR: makes it anew when a pin or the Python has changed, else leaves it alone.
make_venv() {
  local python=$1 venv=$2 flavour=$3 lists=(hooks/requirements.txt hooks/requirements-dev.txt) list wanted wheel
  [[ $flavour == system ]] || lists+=("hooks/requirements-$flavour.txt")
  local pins="$PYCUDA $LEAN8 $LEAN11 $CUDA_HEADERS_12 $CUDA_HEADERS_13 ${EDGEAPP_CUDA_STUBS:-}"
  wanted=$({ cat "${lists[@]}" && "$python" -VV && echo "$python" "$pins"; } | sha256sum)
  if [[ $(cat "$venv/made-from" 2>/dev/null) == "$wanted" ]]; then
    return
  fi
  say "setup: ${venv#"$ROOT/"} with $("$python" -V)"
  [[ -L $venv ]] && die 70 "cannot make $venv" "it is a link: what it leads to would be cleared" "remove the link"
  run "$python" -m venv --clear "$venv"
  for list in "${lists[@]}"; do
    if [[ $flavour == full && -n ${EDGEAPP_CUDA_STUBS:-} ]]; then
      pip_install "$venv" -r <(grep -vE '^nvidia-(cublas|cudnn)' "$list")
    else
      pip_install "$venv" -r "$list"
    fi
  done
  wheel=$(pycuda_wheel "$venv")
  pip_install "$venv" --no-index "$wheel"
  case $flavour-$MACHINE-${EDGEAPP_CUDA_STUBS:+stubs} in
    lean-*)
      install_lean_beside "$venv" 11 "tensorrt-lean-cu$CUDA-libs==$LEAN11" "tensorrt-lean-cu$CUDA-bindings==$LEAN11"
      [[ $MACHINE != x86_64 ]] || install_lean_beside "$venv" 8 --python-version 3.10 "tensorrt_lean==$LEAN8"
      ;;
    full-*-stubs) install_stubs "$venv" ;;
    system-*) link_host_tensorrt "$python" "$venv" ;;
  esac
  echo "$wanted" >"$venv/made-from"
}

setup() { # setup [FLAVOUR]: sets VENV, and for system CUDA
  local flavour=${1:-lean} minor=''
  [[ $flavour != full ]] || minor=10 # tensorrt 8.6.0, the newest full one on PyPI, stops at Python 3.10
  find_python $minor
  [[ -n $PYTHON_FOUND ]] || die $EX_UNAVAILABLE "cannot find a Python to build with" \
    "${PYTHON_LACKS:-${PYTHON:-none found} is no Python 3.${minor:-10 to 3.13}}" \
    "sudo apt-get install python3-venv python3-dev g++ binutils musl-tools, or name one: PYTHON=/path/to/python3 ./build.sh"
  minor=$("$PYTHON_FOUND" -c 'import sys; print(sys.version_info.minor)')
  VENV=$ROOT/build/venv-3.$minor
  [[ $flavour == lean ]] || VENV=$ROOT/build/venv-$flavour-3.$minor
  if [[ $flavour == system ]]; then
    "$PYTHON_FOUND" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("tensorrt"))' ||
      die $EX_UNAVAILABLE "cannot find TensorRT" "$PYTHON_FOUND has no package tensorrt to bundle" \
        "sudo apt-get install python3-libnvinfer (JetPack, CUDA repository), or PYTHON=/path/to/one/that/has/it"
    local headers
    headers=$(toolkit_headers)
    [[ -z $headers ]] || CUDA=$(sed -nE 's/^#define CUDA_VERSION ([0-9]+)[0-9]{3}\b.*/\1/p' "$headers/cuda.h")
  fi
  make_venv "$PYTHON_FOUND" "$VENV" "$flavour"
}

# --- freeze: one file --------------------------------------------------------------------------------

# The sources of the frozen file, as one hash.
sources() {
  find edgeapp hooks edgeapp.spec build.sh LICENSE -type f -not -path '*/__pycache__/*' -print0 |
    sort -z | xargs -0 sha256sum | sha256sum
}

# Whether dist/edgeapp is what ./build.sh portable made of these very sources.
is_portable() { [[ -f dist/edgeapp && $(cat build/portable-from 2>/dev/null) == "$(sources)" ]]; }

# All that the frozen file is made from, as one hash.
made_from() { # made_from WORD...
  {
    sources
    cat "$VENV/made-from"
    echo "$@"
  } | sha256sum
}

# What git calls this tree, with -dirty if what is frozen has changed since; nothing where there is no git.
commit() {
  local commit
  commit=$(git rev-parse HEAD 2>/dev/null) || return 0
  [[ -z $(git status --porcelain -- edgeapp hooks edgeapp.spec build.sh LICENSE) ]] || commit+=-dirty
  echo "$commit"
}

# PyInstaller warns of what it does not find, and goes on: here that ends the build.
freeze_with_pyinstaller() { # freeze_with_pyinstaller WORK [LAYOUT]
  local work=$1 layout=${2:-folder} bad known="named 'collections.abc'"
  known+="|named '?ssl'? " # edgeapp.spec leaves an old OpenSSL out
  [[ -z $SLIM ]] || known+="|named '?onnxruntime'? "
  mkdir -p "$work"
  # The hash seed makes two builds of one commit the same to the byte, with SOURCE_DATE_EPOCH.
  run env PYTHONHASHSEED=1 PYINSTALLER_CONFIG_DIR="$work/cache" PYTHONPATH="$ROOT" \
    EDGEAPP_LAYOUT="$layout" EDGEAPP_SLIM="$SLIM" EDGEAPP_TENSORRT="$FLAVOUR" EDGEAPP_BUILDER="$BUILDER" \
    EDGEAPP_CUDA="$CUDA" EDGEAPP_COMMIT="$(commit)" \
    "$VENV/bin/python" -m PyInstaller --noconfirm --log-level WARN \
    --workpath "$work" --distpath "$work/dist" edgeapp.spec 2>&1 | tee "$work/log" >&2 ||
    die 70 "PyInstaller failed" "see above" "see above"
  bad=$(grep -E 'WARNING: Library not found|ERROR: ' "$work/log" || true)
  # A module that edgeapp itself imports and that did not travel: left out on purpose, or missing here.
  # (collections.abc is no file in Python 3.13, collections makes it.)
  bad+=$(grep -E '^(missing|excluded) module named .* imported by .*\bedgeapp\b' \
    "$work/edgeapp/warn-edgeapp.txt" | grep -vE "$known" || true)
  [[ -z $bad ]] || die 70 "the frozen program would be incomplete" "$bad" "install it, or name it in edgeapp.spec"
}

# Prints the folder with zstd.c, zstd.h and the compiled zstd.o.
zstd_folder() {
  local folder=$CACHE/zstd-of-zstandard-$ZSTANDARD-$MACHINE sdist work
  if [[ ! -f $folder/zstd.o ]]; then
    mkdir -p "$CACHE"
    work=$(mktemp -d "$CACHE/zstd.XXXXXX")
    run "$VENV/bin/python" -m pip download --no-deps --no-build-isolation --no-binary=zstandard \
      --dest "$work" "zstandard==$ZSTANDARD"
    sdist=$work/zstandard-$ZSTANDARD.tar.gz
    echo "$ZSTANDARD_SHA256  $sdist" | sha256sum --quiet --check ||
      die $EX_UNAVAILABLE "cannot use zstd's source" "$sdist is not the one that was looked at" "find out why"
    tar xf "$sdist" -C "$work" --strip-components=2 "zstandard-$ZSTANDARD/zstd"
    rm "$sdist"
    # As C and without the parts in assembler, which the one-file form cannot hold.
    run musl-gcc -O2 -DZSTD_DISABLE_ASM=1 -ffunction-sections -fdata-sections \
      -c "$work/zstd.c" -o "$work/zstd.o"
    mv "$work" "$folder"
  fi
  echo "$folder"
}

# Adds sbom.json and licences/ to the frozen folder; the last change to it.
add_bill_of_materials() { # add_bill_of_materials WORK
  local musl zstd
  musl=$(musl-gcc -M -E - <<<'#include <stdlib.h>' | grep -oE '/[^ ]*/stdlib\.h') # a file of musl's package
  zstd=$(zstd_folder)
  run "$VENV/bin/python" hooks/sbom.py "$1/dist/edgeapp" "$1/edgeapp/origins.json" \
    --launcher "$1/launcher" --musl "$musl" --zstd "$zstd"
}

# The launcher: static, of musl and zstd, so that it starts on every Linux.
build_launcher() { # build_launcher OUTPUT
  local zstd
  zstd=$(zstd_folder)
  run musl-gcc -std=gnu11 -O2 -Wall -Wextra -Werror -ffunction-sections -fdata-sections -static \
    -Wl,--gc-sections,--build-id=none -s -isystem "$zstd" -o "$1" hooks/launcher/*.c "$zstd/zstd.o"
}

# The one file: the launcher and the frozen folder, compressed.
pack() { # pack WORK FILE
  mkdir -p "$(dirname "$2")"
  run "$VENV/bin/python" hooks/launcher/pack.py "$1/launcher" "$1/dist/edgeapp" "$2" "$CACHE/frames"
}

freeze() {
  FLAVOUR=lean BUILDER=0 SLIM=
  while (($#)); do
    case $1 in
      --tensorrt)
        shift
        FLAVOUR=${1:-none}
        ;;
      --tensorrt=*) FLAVOUR=${1#*=} ;;
      --with-builder) BUILDER=1 ;;
      --slim) SLIM=1 ;;
      *) usage "freeze does not know $1" ;;
    esac
    shift $(($# > 0))
  done
  case $FLAVOUR$BUILDER in
    lean0 | system? | full?) ;;
    lean1) usage "--with-builder needs --tensorrt full or system: the lean runtime cannot build" ;;
    *) usage "--tensorrt is lean, system or full" ;;
  esac
  [[ -z $SLIM || $FLAVOUR == lean ]] || usage "--slim goes with --tensorrt lean alone"
  setup "$FLAVOUR"
  need objcopy "to freeze" binutils
  need musl-gcc "to compile the launcher" musl-tools
  local name=edgeapp work=$ROOT/build/freeze-$FLAVOUR${SLIM:+-slim} wanted result
  [[ $FLAVOUR == lean ]] || name=edgeapp-$FLAVOUR
  name+=${SLIM:+-slim}
  wanted=$(made_from "$FLAVOUR" "$BUILDER" "$SLIM" "$(commit)")
  # In a build root: packing is left to the machine around it, for compressing under qemu takes an hour.
  result=${EDGEAPP_PACK_LATER:+$work/launcher}
  result=${result:-dist/$name}
  # What the host brings can change unseen: system is always made anew.
  if [[ $FLAVOUR != system && -f $result && $(cat "$work/made-from" 2>/dev/null) == "$wanted" ]]; then
    return
  fi
  # What ./build.sh portable made of these very sources runs on more machines than what this one makes.
  if [[ $name == edgeapp ]] && is_portable; then
    return
  fi
  say "freeze: dist/$name"
  freeze_with_pyinstaller "$work"
  build_launcher "$work/launcher"
  add_bill_of_materials "$work"
  [[ -n ${EDGEAPP_PACK_LATER:-} ]] || pack "$work" "dist/$name"
  [[ $name != edgeapp ]] || rm -f build/portable-from
  echo "$wanted" >"$work/made-from"
  [[ -z ${EDGEAPP_PACK_LATER:-} ]] || return 0
  say "dist/$name: $(stat --format=%s "dist/$name") bytes"
}

# The CUDA kernels, compiled for every GPU: after a change of edgeapp/gpu/kernels/edgeapp.cu.
kernels() {
  setup
  local package folder folders=()
  for package in $NVRTC; do
    folder=$CACHE/${package/==/-}-$MACHINE
    [[ -f $folder/complete ]] || pip_install "$VENV" --upgrade --target "$folder" "$package"
    touch "$folder/complete"
    folders+=("$folder")
  done
  run "$VENV/bin/python" hooks/kernels.py "${folders[@]}"
}

# --- checks ------------------------------------------------------------------------------------------

# The frozen file alone, with nothing of this machine's Python in reach.
smoke() {
  freeze
  local folder
  folder=$(mktemp -d)
  (cd "$folder" && run env -i PATH=/nonexistent HOME="$folder" TMPDIR="$folder" "$ROOT/dist/edgeapp" --version)
  (cd "$folder" && run env -i PATH=/nonexistent HOME="$folder" TMPDIR="$folder" "$ROOT/dist/edgeapp" demo)
  rm -r "$folder"
}

demo() {
  freeze
  run dist/edgeapp demo "$@"
}

test_() {
  freeze
  ! is_portable || export EDGEAPP_REQUIRE_PORTABLE=1
  EDGEAPP_REQUIRE_FROZEN=1 run "$VENV/bin/python" -m pytest -m "not gpu" "$@"
}

matrix() {
  local minor
  for minor in 10 11 12 13; do
    find_python $minor
    if [[ -z $PYTHON_FOUND ]]; then
      say "Python 3.$minor: none here that can build${PYTHON_LACKS:+ ($PYTHON_LACKS)}"
      continue
    fi
    make_venv "$PYTHON_FOUND" "$ROOT/build/venv-3.$minor" lean
    say "Python 3.$minor"
    run "$ROOT/build/venv-3.$minor/bin/python" -m pytest -m "not gpu and not frozen" "$@"
  done
}

lint() {
  setup
  run "$VENV/bin/ruff" check .
  run "$VENV/bin/ruff" format --check .
  # Nobody, not even edgeapp/gpu, whose freedom to import pycuda would hide it above: autoinit makes a second
  # CUDA context beside the one that TensorRT uses, compiler needs nvcc on the target.
  local banned='{"pycuda.autoinit".msg = "makes a second context", "pycuda.compiler".msg = "needs nvcc"}'
  run "$VENV/bin/ruff" check --select TID251 --config 'lint.per-file-ignores = {}' \
    --config "lint.flake8-tidy-imports.banned-api = $banned" .
  run "$VENV/bin/mypy"
}

check() { # what CI runs
  lint
  freeze --slim
  test_
  smoke
}

# What takes too long for every change; the results are written down in tests/frozen/results.md and service_results.md.
campaign() { # campaign NAME
  local -x PYTEST_ADDOPTS='-o timeout=0' # hours are no hang here
  case ${1:-} in
    launcher) # its random tests, long
      freeze
      EDGEAPP_CAMPAIGN=1 EDGEAPP_REQUIRE_FROZEN=1 run "$VENV/bin/python" -m pytest -v tests/frozen/test_launcher.py
      ;;
    start) # how fast it starts, beside PyInstaller's onedir and onefile of the same program
      freeze
      freeze_with_pyinstaller "$ROOT/build/freeze-onefile" file
      run "$VENV/bin/python" tests/frozen/bench_start.py dist/edgeapp build/freeze-onefile/dist/edgeapp
      ;;
    reproducible) # two clones in two folders, each with a cache of its own, so that each compiles everything
      local here folder
      here=$(mktemp -d)
      run git clone --quiet . "$here/one"
      run git clone --quiet "$here/one" "$here/another/folder"
      for folder in one another/folder; do
        (cd "$here/$folder" && XDG_CACHE_HOME=$here/$folder/cache ./build.sh freeze)
      done
      sha256sum "$here"/{one,another/folder}/dist/edgeapp
      run cmp "$here"/{one,another/folder}/dist/edgeapp
      rm -rf "$here"
      ;;
    inspect) # a hundred thousand damaged model files
      setup
      EDGEAPP_FUZZ=100000 EDGEAPP_FUZZ_SEED=$RANDOM run "$VENV/bin/python" -m pytest -v \
        tests/test_plan.py -k mutated
      ;;
    durability) # killed and refused at every call of the write path, and power cuts
      freeze
      EDGEAPP_CAMPAIGN=1 EDGEAPP_REQUIRE_FROZEN=1 run "$VENV/bin/python" -m pytest -v tests/test_durability.py "${@:2}"
      ;;
    faults) # the service under faults, from damaged pictures to signals: `campaign faults -k f9` for one of them
      freeze
      EDGEAPP_CAMPAIGN=1 EDGEAPP_REQUIRE_FROZEN=1 run "$VENV/bin/python" -m pytest -v tests/faults "${@:2}"
      ;;
    aarch64) # the launcher's tests where the file for aarch64 was made, under qemu
      local users=''
      [[ -f dist/edgeapp-aarch64 ]] || aarch64
      ((EUID)) || users=with_all_users # else the tests that need two users are skipped
      $users in_tree bookworm-arm64 env EDGEAPP_REQUIRE_FROZEN=1 EDGEAPP_BINARY=/src/edgeapp/dist/edgeapp \
        build/venv-3.11/bin/python -m pytest -v -p no:cacheprovider tests/frozen/test_launcher.py
      ;;
    service) # under a real systemd: hangs, starts that cannot be, an update killed at every system call
      freeze
      EDGEAPP_CAMPAIGN=1 EDGEAPP_REQUIRE_FROZEN=1 EDGEAPP_REQUIRE_SYSTEMD=1 \
        run "$VENV/bin/python" -m pytest -v -s tests/test_versions.py tests/frozen/test_service.py tests/frozen/test_sick.py
      ;;
    fuzz) # pictures that are looked for by coverage, on all cores; then all of them with the file; the negative control
      freeze
      fuzz
      ;;
    *) usage "campaign is launcher, start, reproducible, service, inspect, durability, faults, fuzz or aarch64" ;;
  esac
}

# EDGEAPP_FUZZ_S: processor time, seconds.
fuzz() {
  local folder=$ROOT/build/fuzz seconds core worker
  local -a flags=(-max_len=20000 -rss_limit_mb=4096 -timeout=20 -artifact_prefix="$folder/")
  [[ -d $folder/lib ]] || pip_install "$VENV" --target "$folder/lib" atheris==3.0.0
  mkdir -p "$folder/corpus"
  local -x PYTHONPATH=$folder/lib:$ROOT
  seconds=$((${EDGEAPP_FUZZ_S:-14400} / $(nproc)))
  workers=() # not local: the trap looks at it
  for ((core = 1; core <= $(nproc); core++)); do
    "$VENV/bin/python" tests/faults/fuzz_pictures.py -max_total_time="$seconds" -reload=10 -seed=$RANDOM "${flags[@]}" \
      "$folder/corpus" &>"$folder/$core.log" &
    workers+=($!)
  done
  trap 'kill "${workers[@]}" 2>/dev/null || :' EXIT # whatever ends this: the others would go on for hours
  for worker in "${workers[@]}"; do
    wait "$worker" || die 70 "a picture ends in an error that is none of edgeapp's" "see $folder/*.log" \
      'the picture is there as crash-..., timeout-... or oom-...: mend what it finds'
  done
  tail -qn 1 "$folder"/[0-9]*.log
  printf '%s\n' "$folder"/corpus/* | dist/edgeapp --engine edgeapp/data/demo/model.onnx --input - --quiet \
    --output "$folder/results.jsonl" 2>"$folder/file.log" || (($? == 1)) ||
    die 70 "dist/edgeapp does not answer all pictures that were found" "see $folder/file.log" 'mend what it finds'
  echo "dist/edgeapp answered $(wc -l <"$folder/results.jsonl") pictures that were found"
  rm -rf "$folder/planted" # from the seeds, as the first minutes were: among thousands of pictures it would be rarer
  EDGEAPP_PLANTED=1 "$VENV/bin/python" tests/faults/fuzz_pictures.py -max_total_time=300 "${flags[@]}" \
    "$folder/planted" &>"$folder/planted.log" || :
  grep -q 'IndexError: planted' "$folder/planted.log" ||
    die 70 'the fault that was planted was not found' "see $folder/planted.log" 'mend fuzz_pictures.py'
  rm -f "$folder"/crash-*
  echo "the fault that was planted was found"
}

clean() { run rm -rf build dist .mypy_cache .pytest_cache .ruff_cache; }

# --- verbs -------------------------------------------------------------------------------------------

help() {
  cat <<'TEXT'
usage: ./build.sh [VERB]

  (none)   setup, freeze, smoke: from a clone to a proven dist/edgeapp
  setup    the virtual environment build/venv-3.N with everything pinned; PyCUDA is compiled, 90 s, once
  freeze   dist/edgeapp    --tensorrt lean|system|full   which TensorRT travels inside (lean)
                           --slim                        dist/edgeapp-slim: lean 10.16.1 alone, no ONNX Runtime or demo
                           --with-builder                with what builds plans; system and full only
  portable dist/edgeapp, made in a Debian 11: for x86-64 with glibc 2.31 (Debian 11, Ubuntu 20.04) or newer;
           needs debootstrap; 15 minutes the first time. `portable run ...` runs it there, bare
  aarch64  dist/edgeapp-aarch64, made in a Debian 12 under qemu: for JetPack 7; needs debootstrap and
           qemu-user-static; half an hour the first time. `aarch64 run ...` runs it there, bare
  kernels  edgeapp/gpu/kernels/edgeapp.zip, the compiled edgeapp.cu, which is committed; needs no GPU and no toolkit
  demo     dist/edgeapp demo, frozen first if need be; arguments go to the demo
  smoke    runs dist/edgeapp with nothing but itself in reach
  test     all tests but those that need a GPU; arguments go to pytest
  matrix   the source tree's tests on every Python 3.10 to 3.13 found here
  lint     ruff and mypy
  campaign NAME   launcher: a thousand starts killed, run side by side and damaged (25 min)
                  start: how fast it starts, beside PyInstaller's onedir and onefile
                  reproducible: two builds in two folders are the same to the byte (12 min)
                  service: install, update and rollback under a real systemd, killed at every step; hangs; starts
                  that cannot be (6 min)
                  inspect: 100,000 damaged model files (5 min)
                  durability: killed at every call of the write path, refused calls, 2,000 power cuts (an hour)
                  faults: the service with damaged inputs, kills, signals, reloads, a full disk, ten million inferences
                  (five hours; EDGEAPP_SHARE=0.1 for a tenth); -k f9 and the like for one fault
                  fuzz: pictures found by coverage through decoding and preprocessing (4 hours of processor time)
                  aarch64: the launcher's tests for the aarch64 file, under qemu
  check    lint, test, smoke: what CI runs
  clean    removes what was built here, not ~/.cache/edgeapp-build with the compiled PyCUDA
  help     this

PYTHON=/path/to/python3 chooses the Python; CUDA_HOME a CUDA toolkit, which is not needed.
DEBIAN_MIRROR=http://... is where portable and aarch64 take Debian from, instead of deb.debian.org.
exit codes: 0 ok, 64 usage, 69 something is missing on this machine, 70 the build failed
TEXT
}

usage() { # usage WHAT
  printf 'build.sh: %s\n\n' "$1" >&2
  help >&2
  exit $EX_USAGE
}

main() {
  local verb=${1:-}
  (($# == 0)) || shift
  case $verb in
    '') smoke ;;
    test) test_ "$@" ;;
    setup | freeze | portable | aarch64 | kernels | demo | smoke | matrix | lint | campaign | check | clean | help) "$verb" "$@" ;;
    *) usage "no verb $verb" ;;
  esac
}

main "$@"; exit # on one line, so that an edit of this file does not reach a run that has begun
