"""A host that is a copy of a real DataComp checkout."""

from tests.host.contract import Host, Outcome


class RealDataComp(Host):
    """A checkout that is patched by our command line."""

    def install(self) -> Outcome:
        return self.run("-m", "datacomp_flyt.cli", "install", self.directory)

    def check(self) -> Outcome:
        return self.run("-m", "datacomp_flyt.cli", "install", self.directory, "--check")

    def revert(self) -> Outcome:
        return self.run("-m", "datacomp_flyt.cli", "install", self.directory, "--revert")
