"""What an extra installs is enough for what it is for: everything else is hidden from a fresh process."""

import subprocess
import sys

HIDE = """
import importlib.metadata as metadata, sys
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

def closure(name, extras, seen):
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        wanted = any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in extras)
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if wanted and key not in seen:
            try:
                metadata.distribution(requirement.name)
            except metadata.PackageNotFoundError:
                continue
            seen.add(key)
            closure(requirement.name, {"", *requirement.extras}, seen)
    return {name for name, _ in seen}

there = closure("kakao-models", {"", EXTRA}, set()) | {"kakao-models", "packaging", *map(canonicalize_name, MORE)}
for name in MORE:
    there |= closure(name, {""}, set())
owners = metadata.packages_distributions()
hidden = {module for module, names in owners.items() if not {canonicalize_name(name) for name in names} & there}

class Hiding:  # importlib.util.find_spec gives None, as where nothing is installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""

MODEL = """
from kakao_models import AlignModel
AlignModel.from_pretrained("align-small")
"""
CLASSIFY = """
from kakao_models import cli
from kakao_models.demo.photos import BUNDLED
cli.main(["classify", str(BUNDLED / "cat.jpg"), "--labels", "a cat,a ship", "--model", "align-small"])
"""


def test_the_extra_onnx_is_enough():
    done = subprocess.run(
        [sys.executable, "-c", f"EXTRA, MORE = 'onnx', ()\n{HIDE}{CLASSIFY}"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "a cat 100" in done.stdout, done.stderr


def test_the_extra_torch_is_enough():
    """Those of Keras and Flax are installed on their own by `make test-without-torch`."""
    program = f"EXTRA, MORE = 'torch', ('optree',)\n{HIDE}{MODEL}{CLASSIFY}"  # torch looks for optree's metadata, not for the module
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
