"""Executes notebooks, each in an empty folder, and writes their outputs into them. An error in a cell ends it.

    python notebooks/execute.py notebooks/*.ipynb

It needs the extra `notebooks`. The install cells are skipped.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path, help="files to execute and to write")
    files = parser.parse_args().notebooks
    os.environ |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # for kakao-models
        "TTY_COMPATIBLE": "0",  # commands print without colours
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # of tqdm, which would like to draw widgets
    }
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook,
                kernel_name="python3",
                record_timing=False,  # it would change the file at every run
                resources={"metadata": {"path": folder}},
                skip_cells_with_tag="install",
                timeout=1800,
            )
            client.execute()
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, file)
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
