"""What a run of one suite on one data set has to measure, and what of it is done."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqindex.bench.config import Config, load_config, set_tables
from tqindex.bench.environment import describe_environment
from tqindex.bench.peers import PACKAGES, Method, Setup, find_methods, package_version
from tqindex.bench.results import ResultFile
from tqindex.bench.sets import Source, data_folders, file_set, find_file, find_set
from tqindex.bench.suites import SUITES
from tqindex.bench.suites.base import Group, Suite


@dataclass(frozen=True)
class Task:
    """One suite on one data set at one size, as words: what a child process is given.

    Attributes
    ----------
    suite, size : str
    set_name : str or None
        A name in sets.toml.
    file : str or None
        A user's own file, in the place of a set.
    data : str or None
        Where files of sets are looked for first.
    results : str
        Folder of the result files.
    device : str
        "cpu", "gpu" or "gpu:N"; results of a GPU have a folder of their own.
    """

    suite: str
    size: str
    set_name: str | None
    file: str | None
    data: str | None
    results: str
    device: str = "cpu"

    def source(self) -> Source | None:
        """Find the data set; None where its file is not at hand, or the suite has none."""
        if self.file is not None:
            return file_set(Path(self.file))
        if self.set_name is None:
            return None
        return find_set(self.set_name, data_folders(Path(self.data) if self.data else None))


class Plan:
    """The groups of a task, and its result file.

    Attributes
    ----------
    groups : dict of Group by fingerprint, in order
    absent : list of dict
        Peers that are not installed, and methods that do not do what is asked, with reasons.
    """

    def __init__(self, task: Task, source: Source | None) -> None:
        self.task, self.source = task, source
        self.suite: Suite = SUITES[task.suite]
        self.config: Config = load_config(task.suite, task.size).on_set(source.name if source else None)
        self.absent: list[dict[str, Any]] = []
        self.groups = {
            self.suite.fingerprint(self.config, group, source, task.device): group
            for each in self.suite.groups(self.config, self._installed(), source)
            if (group := self._able(each)).methods
        }
        name = task.suite if source is None else f"{task.suite}-{source.name}"
        size = task.size if task.device == "cpu" else f"{task.size}-gpu"
        self.file = ResultFile(Path(task.results) / size / f"{name}.json", set(self.groups))

    @property
    def title(self) -> str:
        """What progress lines begin with."""
        return self.task.suite if self.source is None else f"{self.task.suite} {self.source.name}"

    @property
    def pending(self) -> list[str]:
        """Fingerprints of the groups that are to be measured."""
        return self.file.missing(list(self.groups))

    def write(self, dataset: dict[str, Any] | None) -> None:
        """Write the result file as it stands."""
        head = {
            "suite": self.task.suite,
            "size": self.task.size,
            "dataset": dataset,
            "environment": describe_environment(self.task.device),
            "config": asdict(self.config),
            "absent": self.absent,
            "not_measured": self._not_measured(),
        }
        self.file.write(head, list(self.groups))

    def fail(self, method: Method, bits: int | None, reason: str) -> None:
        """Note why a method has no row."""
        self.absent.append({"peer": method.peer, "method": method.key, "bits": bits, "reason": reason, "command": None})

    def _installed(self) -> list[Method]:
        methods = find_methods(self.config.methods)
        missing = {method.peer: PACKAGES[method.peer] for method in methods if package_version(method.peer) is None}
        for peer, package in missing.items():
            self.absent.append({"peer": peer, "reason": "not installed", "command": package.command})
        left_out = self.config.leave_out.get(self.source.name, ()) if self.source else ()
        return [method for method in methods if method.peer not in missing and method.key not in left_out]

    def _able(self, group: Group) -> Group:
        """Drop the methods that refuse the group's width or the set's metric."""
        if self.source is None:
            return group
        setup = Setup(
            self.source.dim,
            0,
            group.bits,
            "l2" if self.source.metric == "l2" else "ip",
            self.source.metric == "cosine",
            1,
            device=self.task.device,
        )
        refusals = {method.key: method.refusal(setup) for method in group.methods}
        for method in group.methods:
            if reason := refusals[method.key]:
                self.fail(method, group.bits, reason)
        kept = tuple(method for method in group.methods if not refusals[method.key])
        return Group(kept, group.bits, group.parameters)

    def _not_measured(self) -> list[dict[str, Any]]:
        """Sets of the paper that are not at hand, and methods that are left out at this size, each with its command."""
        suite, folders = self.task.suite, data_folders(Path(self.task.data) if self.task.data else None)
        left_out = self.config.leave_out.get(self.source.name, ()) if self.source else ()
        return [
            {"dataset": name, "command": f"{set_tables()[name]['fetch']} && {_command(suite, name)}"}
            for name in load_config(suite, "paper").sets
            if "fetch" in set_tables()[name] and find_file(name, folders) is None
        ] + [
            {"dataset": self.source.name, "method": key, "command": _command(suite, self.source.name)}
            for key in left_out
            if self.source
        ]


def _command(suite: str, name: str) -> str:
    return f"tqindex bench run {suite} --set {name} --size paper"
