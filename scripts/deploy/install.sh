#!/bin/sh
# Installs mlora @VERSION@ for this user: fetches the archive (or takes one that lies next to this script), compares its
# SHA-256, and puts the binary into ~/.local/bin, or where the first argument says.
#
#   sh install.sh [FOLDER]          # MLORA_URL: the folder of the archive, where it is not next to this script
set -eu

target="${1:-$HOME/.local/bin}"
fail() { echo "install: $*" >&2; exit 1; }

case "$(uname -s)-$(uname -m)" in
  Linux-x86_64) processor=x64 expected="@X64@" ;;
  Linux-aarch64 | Linux-arm64) processor=arm64 expected="@ARM64@" ;;
  *) fail "mlora is for Linux on x86-64 or 64-bit Arm, and this is $(uname -s) on $(uname -m)" ;;
esac
[ "$expected" != none ] || fail "this release has no archive for $(uname -m): build mlora on this machine's own kind, or take another release"
archive="mlora-@VERSION@-linux-$processor.tar.xz"
folder="$(mktemp -d)"
trap 'rm -r "$folder"' EXIT
here="$(dirname "$0")/$archive"
if [ -n "${MLORA_URL:-}" ]; then
  curl --fail --location --silent --show-error --output "$folder/$archive" "$MLORA_URL/$archive" || fail "cannot fetch $MLORA_URL/$archive"
elif [ -f "$here" ]; then cp "$here" "$folder/$archive"
else fail "$archive is not next to this script: set MLORA_URL to the address of its folder"
fi
found="$(sha256sum "$folder/$archive" | cut -d ' ' -f 1)"
[ "$found" = "$expected" ] || fail "the SHA-256 of $archive is $found, expected $expected; nothing was installed"
tar -xJf "$folder/$archive" -C "$folder"
mkdir -p "$target"
# under its name there is a whole binary or the one before
cp "$folder/${archive%.tar.xz}/mlora" "$target/.mlora.$$"
mv "$target/.mlora.$$" "$target/mlora"
echo "installed $("$target/mlora" --version) in $target"
case ":$PATH:" in *":$target:"*) ;; *) echo "add it to your PATH: export PATH=\"$target:\$PATH\"" ;; esac
