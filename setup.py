"""Build script. The metadata is in `pyproject.toml`; this file holds what setuptools can only be told in Python.

Where torch can be imported (``pip install --no-build-isolation``), the kernels are compiled here and now; where not, or
where that fails, the package is pure Python and compiles them at first use, from the sources that it carries.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
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
    return [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".cpp", ".cuh", ".cu")]


def kernels():
    """Arguments for `setup` that compile the kernels; none where torch or a compiler is missing."""
    if importlib.util.find_spec("torch") is None:
        return {}
    sys.path.insert(0, str(ROOT))
    from gradreg_fast import build  # its sources and flags serve the build at first use, too

    class Compile(build_ext):
        """Compiles the library, or leaves it to the first use."""

        def run(self):
            """Build, or say why not."""
            try:
                super().run()
            except (OSError, build.BuildError) as error:
                print(f"gradreg_fast: the kernels are not compiled now ({error})")

        def build_extension(self, extension):
            """By the commands of the build at first use."""
            library = Path(self.get_ext_fullpath(extension.name))
            library.parent.mkdir(parents=True, exist_ok=True)
            build.compile_ahead(library)

    return {
        "ext_modules": [Extension(build.MODULE, [], py_limited_api=True)],
        "cmdclass": {"build_ext": Compile},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


arguments = kernels()
commands = {"sdist": SourceDistribution, "build_py": BuildWithSources, **arguments.pop("cmdclass", {})}
setup(cmdclass=commands, **arguments)
