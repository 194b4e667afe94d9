"""Unsloth and what it needs as one file, for a machine without a network: python3 scripts/bench/unsloth_bundle.py OUT.tar.xz

Downloads the wheels of unsloth.txt for Linux on x86-64 and CPython 3.12, and packs what `import unsloth` and its training use:
no bitsandbytes libraries of other CUDAs, none of torchao's compiled parts, no graphical front end. About 11 MB in place of
150. `scripts/bench/peers --unsloth OUT.tar.xz` unpacks it.
"""

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WANTED = Path(__file__).with_name("unsloth.txt")
GLIBC = (34, 28, 27, 24, 17)  # manylinux_2_N of wheels
LEFT_OUT = re.compile(
    r"^(studio|unsloth_cli|test)/|\.dist-info/licenses/|\.data/|^torchao/.*\.so$|"
    r"^bitsandbytes/(?!.*(cuda130|cpu)\.so$).*\.so$|__pycache__/"
)


def download(folder: str) -> None:
    platforms = [f"manylinux_2_{n}_x86_64" for n in GLIBC] + ["manylinux2014_x86_64", "any"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    command += ["--python-version", "3.12", "--implementation", "cp", "-r", str(WANTED)]
    subprocess.run([*command, *(word for name in platforms for word in ("--platform", name))], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.tar.xz")
    parser.add_argument("--wheels", help="a folder that has them; else they are downloaded")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.wheels:
            download(folder)
        wheels = sorted(Path(args.wheels or folder).glob("*.whl"))
        if not wheels:
            sys.exit(f"there are no wheels in {args.wheels or folder}")
        with tarfile.open(args.out, "w:xz") as out:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    for entry in archive.infolist():
                        if entry.is_dir() or LEFT_OUT.search(entry.filename):
                            continue
                        data = archive.read(entry)
                        info = tarfile.TarInfo(entry.filename)
                        info.size = len(data)
                        out.addfile(info, io.BytesIO(data))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB of {len(wheels)} wheels")


if __name__ == "__main__":
    main()
