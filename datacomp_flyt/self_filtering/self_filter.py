"""Run Self-Filtering-style rounds: train CLIP on a subset, score the pool with it, select anew."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from datacomp_flyt.distributed.torchrun_ranks import ranks_of_torchrun
from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.files.output_files import check_save_path
from datacomp_flyt.files.settings_file import SETTINGS_FILE, check_settings
from datacomp_flyt.installation import needs_extra, require_training
from datacomp_flyt.pool.outputs import Output, check_outputs
from datacomp_flyt.self_filtering.finalize import NOTE
from datacomp_flyt.self_filtering.next_subset import SUBSET
from datacomp_flyt.self_filtering.plan import SelfFilterOptions, plan
from datacomp_flyt.self_filtering.rounds import Run
from datacomp_flyt.steps import follow_steps, run_steps
from datacomp_flyt.streams import say
from datacomp_flyt.tars.shard_names import absolute_path


@dataclass(frozen=True)
class SelfFilterResult:
    """The files that a run ends with.

    Attributes:
        subset: the last subset, a sorted `u8,u8` `.npy` file.
        page: the HTML page of all rounds; None without reports.
    """

    subset: Path
    page: Path | None


def self_filter(options: SelfFilterOptions) -> SelfFilterResult:
    """Run the rounds that are not done yet.

    Steps run in the current folder, and are printed as commands before they run. Under torchrun,
    all ranks call this function: they train together, and rank 0 does all other work.

    Raises:
        InputError: an option is wrong, a package is missing, or a step failed.
    """
    _check_packages(options)
    run = plan(options)
    steps = list(run.steps())
    folder, ranks = Path(run.out), ranks_of_torchrun()
    page = folder / "report" / "index.html" if run.reports else None
    result = SelfFilterResult(folder / SUBSET, page)
    flags = dict(vars(options))
    check_outputs(_outputs(folder), {"script": flags.pop("trainer"), **flags})
    if ranks and ranks.rank:
        follow_steps(steps, folder, Path.cwd(), ranks)
        return result
    with lock_outputs(check_save_path(folder / SETTINGS_FILE, "--out").parent):
        _check_folder(folder, run)
        made = ("round_*/**", "report")
        run_steps(steps, folder, cwd=Path.cwd(), ranks=ranks, made=made)
    say("", f"The last subset: {result.subset}")
    if page is not None:
        say(f"All rounds as a page: {page}")
    return result


def _check_packages(options: SelfFilterOptions) -> None:
    """Raise InputError where a package is missing or too old for a step."""
    with needs_extra("train"):
        import open_clip  # noqa: F401
        import webdataset  # noqa: F401
    if options.reports:
        with needs_extra("report"):
            import jinja2  # noqa: F401
            import matplotlib  # noqa: F401
    if options.selector != "self_filtering":
        require_training(f"datacomp-flyt self_filter --selector {options.selector}")


def _outputs(folder: Path) -> list[Output]:
    """Return the files and folders of a run."""
    filled = ("done", "logs", "report", *(path.name for path in folder.glob("round_*")))
    return [
        Output("--out", folder, (SUBSET, NOTE, SETTINGS_FILE)),
        *(Output("--out", folder / name, ("*",), whole=True) for name in filled),
    ]


def _check_folder(folder: Path, run: Run) -> None:
    """Note the run's settings in its folder, or compare them with those noted before.

    Rounds may be added later, so their number may change, unless the random share depends on it.

    Raises:
        InputError: the folder holds a run with other settings, or of version 0.1.0.
    """
    if (folder / "round_0" / "mix.npy").exists():
        raise InputError(
            f"--out {folder} holds a run of an earlier version, whose steps have other names: its "
            "mix.npy can still be selected by --name self_filtering, so give another --out"
        )
    settings = dataclasses.asdict(run.settings)
    if run.settings.random_schedule == "constant":
        del settings["rounds"]
    settings["pool"] = absolute_path(run.trainer.shards_dir)
    settings["trainer"] = list(run.trainer.words)
    for name in (
        *("model", "model_config", "hook", "downstream_dir", "scores_dir"),
        *("score_columns", "flyt_flags"),
    ):
        settings[name] = getattr(run, name)
    check_settings(folder, settings, "give another --out", ("done/*", "round_*/**/*"))
