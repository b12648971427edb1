"""Build script. The metadata is in `pyproject.toml`; this file holds what setuptools can only be told in Python."""

from setuptools import setup
from setuptools.command.sdist import sdist


class SourceDistribution(sdist):
    """A source distribution with what a build and a reader need; setuptools adds some of the tests, never all."""

    def make_distribution(self):
        """Settle the list of files, then write the archive."""
        self.filelist.append("CHANGELOG.md")
        self.filelist.prune("tests")
        super().make_distribution()


setup(cmdclass={"sdist": SourceDistribution})
