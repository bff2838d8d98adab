"""Write the generated parts of architecture.md: the diagram of imports and the table of folders.

    python -m tools.draw_architecture

The diagram has an arrow from a folder to each folder that it imports, unless a longer path of
arrows leads there. The table has the first sentence of each package's docstring.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "architecture.md"
PACKAGE = "datacomp_flyt"
PLUGIN = "baselines_plugin"
BEGIN, END = "<!-- {} -->\n", "<!-- end of {} -->"

Graph = dict[str, set[str]]


def folder_of(module: str) -> str | None:
    """Return the folder or the top-level module to which a module belongs, or None."""
    first, *others = module.split(".")
    if first == PLUGIN:
        return PLUGIN
    return others[0] if first == PACKAGE and others else None


def imported_modules(path: Path) -> set[str]:
    """Return the names of modules that a file imports, and of what it imports from modules."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def import_graph() -> Graph:
    """Return the folders and top-level modules that each of them imports, without itself."""
    known = {path.stem for path in (REPOSITORY / PACKAGE).iterdir()} | {PLUGIN}
    graph: Graph = {}
    for package in (PLUGIN, PACKAGE):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            folder = folder_of(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
            if folder is None or folder == "__init__":
                continue
            targets = {folder_of(name) or "" for name in imported_modules(path)}
            graph.setdefault(folder, set()).update(targets & known)
    return {name: targets - {name} for name, targets in graph.items()}


def merge_leaves(graph: Graph) -> Graph:
    """Merge the top-level modules that import no folder into one node, named after all of them."""
    modules = {path.stem for path in (REPOSITORY / PACKAGE).glob("*.py")}
    leaves = {name for name in modules & graph.keys() if graph[name] <= modules}
    label = ", ".join(sorted(leaves))
    merged: Graph = {label: set()}
    for name, targets in graph.items():
        if name not in leaves:
            merged[name] = (targets - leaves) | ({label} if targets & leaves else set())
    return merged


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return all nodes to which arrows lead from a node."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def reduce(graph: Graph) -> Graph:
    """Remove the arrows of an acyclic graph beside which a longer path leads to the same node."""
    return {
        name: {
            target
            for target in targets
            if not any(target in reachable(graph, other) for other in targets - {target})
        }
        for name, targets in graph.items()
    }


def diagram() -> str:
    """Return the imports between folders as a Mermaid flowchart."""
    graph = reduce(merge_leaves(import_graph()))
    names = sorted(graph, key=lambda name: (-len(reachable(graph, name)), name))
    nodes = {name: f"n{index}" for index, name in enumerate(names)}
    lines = [f'    {nodes[name]}["{name}"]' for name in names]
    lines += [
        f"    {nodes[name]} --> {nodes[target]}" for name in names for target in sorted(graph[name])
    ]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def folder_table() -> str:
    """Return a Markdown table of the packages and the first sentences of their docstrings."""
    folders = [REPOSITORY / PLUGIN]
    folders += sorted(path.parent for path in (REPOSITORY / PACKAGE).glob("*/__init__.py"))
    rows = [f"| `{path.relative_to(REPOSITORY)}/` | {first_sentence(path)} |" for path in folders]
    return "\n".join(["| folder | contents |", "|---|---|", *rows])


def first_sentence(folder: Path) -> str:
    """Return the first sentence of a package's docstring, on one line."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".") + "."


def with_part(page: str, name: str, text: str) -> str:
    """Return the page with a text between the comments that mark a generated part."""
    head, begin, rest = page.partition(BEGIN.format(name))
    _, end, tail = rest.partition(END.format(name))
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no comments around {name}")
    return f"{head}{begin}\n{text}\n\n{end}{tail}"


def generated(page: str) -> str:
    """Return the page with its generated parts made anew."""
    parts: Sequence[tuple[str, str]] = (("diagram", diagram()), ("folders", folder_table()))
    for name, text in parts:
        page = with_part(page, name, text)
    return page


def main() -> None:
    """Write architecture.md anew."""
    PAGE.write_text(generated(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
