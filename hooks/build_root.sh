# shellcheck shell=bash
# Build roots for ./build.sh portable and ./build.sh aarch64: a Debian older than this machine, or of another
# processor, in a folder. What is frozen in one needs no newer C library than that Debian has. build.sh sources this.
#
# Nothing here needs to be root: debootstrap only fetches and verifies, the packages are unpacked and never
# configured, and a user namespace gives the rights to mount. See user_namespaces(7).

ROOTS=$CACHE/roots
DEBIAN_MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# What compiles and freezes; git, file and musl-tools are for the checks and the launcher.
TOOLS=binutils,ca-certificates,file,g++,git,libffi-dev,make,musl-tools,patch,xz-utils,zlib1g-dev
# What every target has, and has to have: run_bare runs the finished file with these alone. PyInstaller's start
# program is linked against zlib's library, and does not look for it in the bundle.
BARE="libc6 libgcc-s1 libstdc++6 zlib1g"

# Debian 11 has glibc 2.31, but only Python 3.9, and an OpenSSL that nobody maintains: both are compiled there, from
# the sources of Debian 13, OpenSSL with Debian's patches. Its mirrors keep the newest OpenSSL alone: pin that then.
CPYTHON=3.13.5
CPYTHON_SOURCE=pool/main/p/python3.13/python3.13_$CPYTHON.orig.tar.xz
CPYTHON_SHA256=93e583f243454e6e9e4588ca2c2662206ad961659863277afcdb96801647d640
OPENSSL=3.5.7-1~deb13u2
OPENSSL_SOURCE=pool/main/o/openssl/openssl_${OPENSSL%-*}.orig.tar.gz
OPENSSL_SHA256=a8c0d28a529ca480f9f36cf5792e2cd21984552a3c8e4aa11a24aa31aeac98e8
OPENSSL_PATCHES=pool/main/o/openssl/openssl_$OPENSSL.debian.tar.xz
OPENSSL_PATCHES_SHA256=593a47654ead460a3b609503733f80bef552ff0802799d3b47784faacc50809f
IN_ROOT_PYTHON=/opt/python

# --- making a root -----------------------------------------------------------------------------------

need_namespaces() {
  need unshare "to enter a build root" util-linux
  unshare --user --map-root-user --mount --pid --fork true 2>/dev/null ||
    die $EX_UNAVAILABLE "cannot enter a build root" "this machine refuses user namespaces" \
      "run it as root, or: sudo sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
}

# Unpacks one package and enters it into dpkg's database, so that dpkg-query answers; its scripts do not run.
unpack_deb() { # unpack_deb DEB FOLDER
  local name list info=$2/var/lib/dpkg/info
  mkdir -p "$info"
  echo 1 >"$info/format" # lists of packages for several architectures have the architecture in their name
  dpkg-deb --fsys-tarfile "$1" |
    tar --extract --directory "$2" --keep-directory-symlink --no-same-owner --warning=no-timestamp
  name=$(dpkg-deb --field "$1" Package)
  list=$name
  [[ $(dpkg-deb --field "$1" Multi-Arch) != same ]] || list+=:$(dpkg-deb --field "$1" Architecture)
  dpkg-deb --fsys-tarfile "$1" | tar --list | sed -E 's,^\.,,; s,/$,,; s,^$,/.,' >"$info/$list.list"
  dpkg-deb --info "$1" md5sums >"$info/$list.md5sums" 2>/dev/null || rm "$info/$list.md5sums"
  dpkg-deb --field "$1" | sed "s/^Package: .*/&\nStatus: install ok installed/" >>"$2/var/lib/dpkg/status"
  echo >>"$2/var/lib/dpkg/status"
}

new_folder() { # new_folder FOLDER: a Debian without any package
  local name
  mkdir -p "$1"/{usr/{bin,sbin,lib,lib64},etc,dev,proc,tmp,root}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$1/$name"; done
}

# What the packages' own scripts would do, as far as a compiler, pip and PyInstaller rely on it.
configure() { # configure FOLDER
  cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"
  cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"
  ln -sf mawk "$1/usr/bin/awk"
  ln -sf gcc "$1/usr/bin/cc"
  ln -sf g++ "$1/usr/bin/c++"
}

# make_root SUITE ARCHITECTURE PACKAGE,...: $ROOTS/SUITE-ARCHITECTURE, and in it bare/ with $BARE only.
make_root() (
  root=$ROOTS/$1-$2 packages=$TOOLS,$3
  wanted=$({
    echo "$1 $2 $packages $BARE"
    declare -f unpack_deb new_folder configure
  } | sha256sum)
  if [[ $(cat "$root/made-from" 2>/dev/null) == "$wanted" ]]; then
    exit
  fi
  need debootstrap "to make a build root" debootstrap
  need gpgv "to verify the build root's packages" gpgv
  [[ -f $DEBIAN_KEYRING ]] || die $EX_UNAVAILABLE "cannot find $DEBIAN_KEYRING" \
    "it verifies the build root's packages" "sudo apt-get install debian-archive-keyring"
  say "build root: Debian $1 for $2 from $DEBIAN_MIRROR (a minute, once)"
  work=$(new_work "$root")
  trap 'rm -rf "$work"' EXIT
  # Root in the namespace only, for debootstrap asks for that even where it just downloads.
  run unshare --user --map-root-user debootstrap --download-only --force-check-gpg --keyring="$DEBIAN_KEYRING" \
    --variant=minbase --arch="$2" --include="$packages" "$1" "$work/debs" "$DEBIAN_MIRROR" >"$root.log" ||
    die $EX_UNAVAILABLE "cannot fetch Debian $1 for $2" "$(tail -n 1 "$root.log")" \
      "look into $root.log; another mirror: DEBIAN_MIRROR=http://... ./build.sh"
  debs=$work/debs/var/cache/apt/archives
  new_folder "$work/root"
  for deb in "$debs"/*.deb; do unpack_deb "$deb" "$work/root"; done
  configure "$work/root"
  in_root "$work/root" -- /sbin/ldconfig
  new_folder "$work/root/bare"
  for name in $BARE; do unpack_deb "$debs/${name}_"*.deb "$work/root/bare"; done
  echo "$wanted" >"$work/root/made-from"
  # Only now under its name: what was interrupted is never taken for a root.
  rm -rf "$root"
  mv "$work/root" "$root"
)

# Prints a new folder beside PATH, for what is to become it.
new_work() { # new_work PATH
  local work
  mkdir -p "$(dirname "$1")"
  work=$(mktemp -d "$1.XXXXXX")
  chmod 755 "$work" # mktemp's 700 would stay with what is made in it
  echo "$work"
}

# --- entering a root ---------------------------------------------------------------------------------

# The first process of the namespaces: mounts, then becomes COMMAND. It gets its functions, but no variable.
enter() { # enter ROOT QEMU FOLDER [SOURCE TARGET]... -- COMMAND...
  set -euo pipefail
  local root=$1 qemu=$2 folder=$3
  shift 3
  mount --bind "$root" "$root" # so that its own processes can have mounts of their own
  # No /sys: that of this processor makes ONNX Runtime crash under qemu; without any it complains and goes on.
  mount --rbind /dev "$root/dev"
  mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc" # the latter in containers
  mount -t tmpfs tmpfs "$root/tmp"
  mkdir -p "$root/mnt" # for the tests
  [[ -z $qemu ]] || register_qemu "$qemu"
  while [[ $1 != -- ]]; do
    if [[ -d $1 ]]; then
      mkdir -p "$root$2"
    else
      mkdir -p "$(dirname "$root$2")"
      touch "$root$2"
    fi
    mount --bind "$1" "$root$2"
    shift 2
  done
  shift
  exec unshare --root="$root" --wd="$folder" "$@"
}

# In the binfmt_misc of this user namespace (Linux 6.7), unless the machine has it set up for all. Flag F keeps the
# interpreter open, so that the root needs no copy of it; P keeps argv[0].
register_qemu() { # register_qemu QEMU
  local folder=/proc/sys/fs/binfmt_misc
  ! grep -qs '^flags:.*F' "$folder/qemu-aarch64" || return 0
  mount -t binfmt_misc binfmt_misc "$folder"
  printf '%s%s%s' ':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:' \
    '\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:' "$1:PF" >"$folder/register"
}

# in_root ROOT [SOURCE TARGET]... -- COMMAND...: runs it there, in $FOLDER, with an environment of its own.
in_root() {
  local root=$1 qemu='' word settings=(TAR_OPTIONS=--no-same-owner) # for there is but one user
  shift
  if [[ $root == *-arm64* && $MACHINE != aarch64 ]]; then
    qemu=$(command -v qemu-aarch64-static)
  fi
  for word in http_proxy https_proxy no_proxy PIP_INDEX_URL PIP_EXTRA_INDEX_URL EDGEAPP_CACHE; do
    [[ -z ${!word:-} ]] || settings+=("$word=${!word}")
  done
  local into=(unshare --user --map-root-user)
  [[ -z ${NAMESPACE:-} ]] || into=(nsenter --user --target "$NAMESPACE" unshare)
  # With REPLACE this shell becomes the namespaces' owner: who kills it kills all in them.
  ${REPLACE:+exec} env --ignore-environment PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/root LANG=C.UTF-8 "${settings[@]}" \
    "${into[@]}" --mount --pid --fork --kill-child \
    bash -c "$(declare -f enter register_qemu); enter \"\$@\"" - "$root" "$qemu" "${FOLDER:-/}" "$@"
}

# with_all_users COMMAND...: in_root enters a user namespace that has all users of this machine; for root only.
with_all_users() {
  local NAMESPACE
  unshare --user sleep infinity &
  NAMESPACE=$!
  while [[ $(readlink "/proc/$NAMESPACE/exe") != */sleep ]]; do sleep 0.01; done
  echo "0 0 65536" >"/proc/$NAMESPACE/uid_map"
  echo "0 0 65536" >"/proc/$NAMESPACE/gid_map"
  trap "kill $NAMESPACE" EXIT
  "$@"
}

# In the working tree, always at the same path, so that the place of the clone leaves no trace in what is built;
# with a build/ and a dist/ of the root's own, for those of this machine hold other binaries.
in_tree() { # in_tree NAME COMMAND...
  local own=$ROOT/build/root-$1 home=$ROOTS/home-$1 mounts=() file
  mkdir -p "$own"/{build,dist} build dist "$home"
  for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
    [[ ! -f $file ]] || mounts+=("$(readlink -f "$file")" "$file")
  done
  [[ ! -d $ROOTS/cpython-$CPYTHON-$1 ]] || mounts+=("$ROOTS/cpython-$CPYTHON-$1" "$IN_ROOT_PYTHON")
  FOLDER=/src/edgeapp in_root "$ROOTS/$1" "${mounts[@]}" "$home" /root "$ROOT" /src/edgeapp \
    "$own/build" /src/edgeapp/build "$own/dist" /src/edgeapp/dist -- \
    env PIP_CERT=/etc/ssl/certs/ca-certificates.crt SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" "${@:2}"
}

# Runs a finished file where there is the C and the C++ library and hardly anything else: no Python, no shell. It sees
# the working tree as /src/edgeapp, and keeps what it unpacks in build/root-NAME/cache.
run_bare() { # run_bare NAME FILE ARGUMENT...
  local cache=$ROOT/build/root-$1/cache
  mkdir -p "$cache"
  FOLDER=/tmp EDGEAPP_CACHE=/cache in_root "$ROOTS/$1/bare" "$2" /edgeapp "$ROOT" /src/edgeapp "$cache" /cache -- \
    /edgeapp "${@:3}"
}

# --- CPython -----------------------------------------------------------------------------------------

# Compiles it for a root, to be mounted at $IN_ROOT_PYTHON. libpython is found by the program alone: a run path in
# every extension would travel to targets and look into a folder there that is not ours.
make_cpython() ( # make_cpython NAME
  kept=$ROOTS/cpython-$CPYTHON-$1
  wanted=$({
    echo "$CPYTHON_SHA256 $OPENSSL_SHA256 $OPENSSL_PATCHES_SHA256"
    cat "$ROOTS/$1/made-from"
    declare -f compile_openssl compile_cpython
  } | sha256sum)
  if [[ $(cat "$kept/made-from" 2>/dev/null) == "$wanted" ]]; then
    exit
  fi
  need wget "to fetch the sources of Python and OpenSSL" wget
  say "compiling OpenSSL $OPENSSL and Python $CPYTHON for $1 (some minutes, once)"
  work=$(new_work "$kept")
  trap 'rm -rf "$work"' EXIT
  fetch_source $CPYTHON_SOURCE $CPYTHON_SHA256 "$work/python.tar.xz"
  fetch_source $OPENSSL_SOURCE $OPENSSL_SHA256 "$work/openssl.tar.gz"
  fetch_source $OPENSSL_PATCHES $OPENSSL_PATCHES_SHA256 "$work/openssl-patches.tar.xz"
  FOLDER=/work in_root "$ROOTS/$1" "$work" /work -- \
    bash -euc "$(declare -f compile_openssl compile_cpython)
      compile_openssl $IN_ROOT_PYTHON $OPENSSL
      compile_cpython $IN_ROOT_PYTHON" >"$kept.log" 2>&1 ||
    die 70 "cannot compile OpenSSL $OPENSSL and Python $CPYTHON" "$(tail -n 3 "$kept.log")" "look into $kept.log"
  echo "$wanted" >"$work/installed$IN_ROOT_PYTHON/made-from"
  rm -rf "$kept"
  mv "$work/installed$IN_ROOT_PYTHON" "$kept"
)

fetch_source() { # fetch_source PATH SHA256 FILE
  run wget --no-verbose --output-document="$3" "$DEBIAN_MIRROR/$1" ||
    die $EX_UNAVAILABLE "cannot fetch $(basename "$1")" "$DEBIAN_MIRROR has no $1, or no network" \
      "another mirror: DEBIAN_MIRROR=http://... ./build.sh, or pin in hooks/build_root.sh what Debian has now"
  echo "$2  $3" | sha256sum --check --status ||
    die $EX_UNAVAILABLE "cannot use $(basename "$1")" "it is not what hooks/build_root.sh pins" \
      "try again or another mirror: DEBIAN_MIRROR=http://... ./build.sh"
}

# What a client of TLS needs, to be linked into Python's module: no file of it travels, and on targets it looks for
# openssl.cnf and authorities in /etc/ssl alone. Its licence goes beside Python, for the bill of materials.
compile_openssl() ( # compile_openssl PREFIX VERSION
  tar xf openssl.tar.gz
  cd openssl-*/
  tar xf ../openssl-patches.tar.xz
  while read -r name; do patch -p1 <"debian/patches/$name"; done <debian/patches/series
  export SOURCE_DATE_EPOCH # which it notes as the time of its build
  SOURCE_DATE_EPOCH=$(stat --format=%Y LICENSE.txt)
  ./Configure linux-x86_64 --prefix=/usr --libdir=lib --openssldir=/etc/ssl \
    CFLAGS="-O2 -fstack-protector-strong -D_FORTIFY_SOURCE=2" \
    no-apps no-docs no-tests no-shared no-module no-dso no-engine no-legacy no-filenames \
    no-cmp no-cms no-ct no-dtls no-quic no-srp no-ts no-aria no-bf no-camellia no-cast no-idea no-md4 no-mdc2 \
    no-rc2 no-rc4 no-rmd160 no-seed no-sm2 no-sm3 no-sm4 no-whirlpool
  make -j "$(nproc)"
  make install_dev DESTDIR=/work/openssl
  install -D --mode=644 LICENSE.txt "/work/installed$1/share/openssl/LICENSE.txt"
  echo "$2" >"/work/installed$1/share/openssl/version"
)

# Without -fno-semantic-interposition each call inside libpython would go by its table of symbols. Profile-guided
# optimisation would take a quarter of an hour and make every build of it different.
compile_cpython() { # compile_cpython PREFIX
  local link="-Xlinker -export-dynamic -Wl,-rpath,$1/lib"
  tar xf python.tar.xz
  cd Python-*
  export SOURCE_DATE_EPOCH PY_UNSUPPORTED_OPENSSL_BUILD=static
  SOURCE_DATE_EPOCH=$(stat --format=%Y configure)
  ./configure --prefix="$1" --enable-shared --disable-test-modules --without-static-libpython \
    --without-ensurepip --without-doc-strings --with-openssl=/work/openssl/usr \
    CFLAGS_NODIST=-fno-semantic-interposition LDFLAGS_NODIST=-fno-semantic-interposition
  make -j "$(nproc)" LINKFORSHARED="$link"
  make install DESTDIR=/work/installed LINKFORSHARED="$link"
}

# --- verbs -------------------------------------------------------------------------------------------

# Freezes in a root, tries the result where nothing else is, and only then puts it into dist/.
freeze_in_root() { # freeze_in_root NAME PYTHON FILE
  local own=$ROOT/build/root-$1
  in_tree "$1" env PYTHON="$2" EDGEAPP_PACK_LATER=1 ./build.sh freeze
  setup
  pack "$own/build/freeze-lean" "$own/dist/edgeapp"
  say "dist/$3 with the C and the C++ library of Debian ${1%-*} and nothing else"
  rm -rf "$own/cache"
  run run_bare "$1" "$own/dist/edgeapp" --version
  run run_bare "$1" "$own/dist/edgeapp" self-test
  run run_bare "$1" "$own/dist/edgeapp" demo >/dev/null
  cp "$own/dist/edgeapp" "$own/$3"
  mv -f "$own/$3" "dist/$3" # a move, so that a running program keeps its file
  say "dist/$3: $(stat --format=%s "dist/$3") bytes"
}

# Whether a verb was given "run": to run the finished file FILE, and not to make it.
to_run() { # to_run FILE [WORD]
  case ${2:-} in
    '') return 1 ;;
    run) ;;
    *) usage "no word $2: only run, or nothing" ;;
  esac
  [[ -f $1 ]] || usage "there is no ${1#"$ROOT/"} to run yet"
}

portable() { # portable [run ARGUMENT...]
  local name=bullseye-amd64 file=$ROOT/dist/edgeapp
  [[ $MACHINE == x86_64 ]] || die $EX_UNAVAILABLE "cannot make the portable file" \
    "it is for x86-64, this machine is $MACHINE" "./build.sh portable on an x86-64 machine"
  need_namespaces
  if to_run "$file" "$@"; then
    REPLACE=1 run_bare $name "$file" "${@:2}"
  fi
  make_root bullseye amd64 libbz2-dev,liblzma-dev,perl,pkg-config
  make_cpython $name
  freeze_in_root $name $IN_ROOT_PYTHON/bin/python3 edgeapp
  sources >build/portable-from # so that freeze leaves it alone
}

aarch64() { # aarch64 [run ARGUMENT...]
  local name=bookworm-arm64 file=$ROOT/dist/edgeapp-aarch64
  [[ $MACHINE == aarch64 ]] || need qemu-aarch64-static "to run programs for aarch64" qemu-user-static
  need_namespaces
  if to_run "$file" "$@"; then
    REPLACE=1 run_bare $name "$file" "${@:2}"
  fi
  make_root bookworm arm64 python3-dev,python3-venv
  freeze_in_root $name /usr/bin/python3 edgeapp-aarch64
}
