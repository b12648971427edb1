"""Build script. The metadata is in `pyproject.toml`; this file holds what setuptools can only be told in Python.

Where torch can be imported (``pip install --no-build-isolation``), the kernels are compiled here and now; where not, or
where that fails, the package is pure Python and compiles them at first use, from the sources that it carries.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent


class SourceDistribution(sdist):
    """A source distribution with what a build and a reader need; setuptools adds some of the tests, never all."""

    def make_distribution(self):
        """Settle the list of files, then write the archive."""
        self.filelist.append("CHANGELOG.md")
        self.filelist.extend(str(path.relative_to(ROOT)) for path in sources())
        self.filelist.prune("tests")
        super().make_distribution()


class BuildWithSources(build_py):
    """Puts the C++ sources into the package, for the build at first use; an editable install finds them beside it."""

    def run(self):
        """Copy the Python files, then the C++ ones."""
        super().run()
        if not self.editable_mode:
            for path in sources():
                target = Path(self.build_lib, "gradreg_fast", path.relative_to(ROOT))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def sources():
    """The C++ sources and headers."""
    return [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".cpp")]


def kernels():
    """Arguments for `setup` that compile the kernels; none where torch or a compiler is missing."""
    if importlib.util.find_spec("torch") is None:
        return {}
    sys.path.insert(0, str(ROOT))
    from gradreg_fast import build  # its flags and sources serve the build at first use, too

    try:
        build.find_compiler()
    except build.BuildError as error:
        print(f"gradreg_fast: the kernels are not compiled now ({error})")
        return {}
    use_ninja()
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class BuildOrLater(BuildExtension):
        """Leaves the kernels to the first use if they do not compile."""

        def run(self):
            """Build, or say why not."""
            try:
                super().run()
            except Exception as error:
                print(f"gradreg_fast: the kernels are not compiled now ({error})")

    extension = CppExtension(
        build.MODULE,
        [f"csrc/{name}" for name in build.SOURCES],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": list(build.FLAGS)},
        optional=True,
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildOrLater}}


def use_ninja():
    """Put the ninja package's program into PATH, where torch looks for it."""
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{os.environ.get('PATH', '')}"


arguments = kernels()
commands = {"sdist": SourceDistribution, "build_py": BuildWithSources, **arguments.pop("cmdclass", {})}
setup(cmdclass=commands, **arguments)
