"""Commands of the pages that cannot run in a test, and what is changed in those that run.

Patterns are regular expressions that are searched in `PAGE:COMMAND`. A pattern that matches no
command of any page fails the test: remove it.
"""

from __future__ import annotations

import os

NOT_COMMANDS = [
    ("docs/select.md:vit-b-32  vit-l-14", "names of columns"),
    ("docs/select.md:column 'DFN-FT' from", "lines of what a selection prints"),
    ("docs/self_filtering.md:run/round_2/subset.npy", "a folder's layout"),
]
"""Indented blocks that are not shell code: the page with the block's first characters, and why."""

NOT_RUN = [
    (r":(?:\S*python\S* -m )?pip install ", "installs packages over the network"),
    (r"\bmake (?:demo|test-all)", "builds an environment of its own over the network"),
    (r" \.\.\.|\[its flags\]", "is abbreviated on the page"),
    (r"docs/dfn.md:sed -i", "reads Google's list of CC12M, a download"),
    (r"docs/dfn.md:img2dataset ", "downloads CC12M"),
    (r"open_clip_train.main \\\n +--model ViT-B-32 --pretrained openai", "downloads weights"),
    (r"--pretrained logs/dfn_base", "goes on from the command above it, for 8 GPUs"),
    (r"docs/submit.md:python download_evalsets.py", "downloads the evaluation sets"),
    (r":python (?:evaluate|aggregate_scores).py", "reads the evaluation sets, a download"),
    (r"docs/submit.md:huggingface-cli", "signs in to Hugging Face"),
]
if "DATACOMP_DIR" not in os.environ:  # the stand-in for it has been patched
    NOT_RUN.append((r"datacomp-flyt install", "knows DataComp's own file alone"))
"""Commands that do not run here, and the reason."""

OTHER_OUTPUT: list[tuple[str, str]] = [
    (r"docs/many_nodes.md:datacomp-flyt check_parts", "the page shows another subset"),
]
"""Commands whose printed output is not compared, and the reason."""

SUBSTITUTIONS = [
    (r"--nproc_per_node 8", "--nproc_per_node 1", "one process instead of 8 GPUs"),
    (r"\{0+\.\.0*[1-9]\d*\}", "{00000000..00000003}", "the pool here has few shards"),
    (r"\bN=12896", "N=4", "the pool here has 4 shards"),
    (
        r"(baselines(?:\.py|_plugin) [^&]*?)--scale (?:medium|large)",
        r"\1--num_samples 1000 --repetition_penalty 0.15",
        "128M draws of a pool of 420 rows take minutes",
    ),
    (r'scale="medium"', "num_samples=1000, repetition_penalty=0.15", "the same"),
    (r"--num_samples 1280000000", "--num_samples 1000", "the same"),
    (r"--work_dir /(?:fast|local)/disk/work", "--work_dir work", "there is no such disk"),
    (r"--kills 200", "--kills 1", "half an hour"),
    (r"--mutants 60", "--mutants 1", "minutes"),
    (r"datacomp-flyt demo", "datacomp-flyt demo --quick", "five minutes; tested by tests/demo"),
    (r"--num_rounds 500", "--num_rounds 5", "a pool of 420 rows has nothing to drop 500 times"),
    (r"--preset m_flyt_base", "--preset tiny --num_steps 2", "a GPU model"),
    (r'preset="m_flyt_base"', 'preset="tiny", num_steps=2', "a GPU model"),
    (r'"ViT-B-32-quickgelu", "openai"', '"flyt-tiny", "tiny_clip.pt"', "the same: a download"),
    (r"ViT-[BL]-\d+-quickgelu:openai", "flyt-tiny:tiny_clip.pt", "OpenAI's weights: a download"),
    (r"--checkpoint logs/", "--model flyt-tiny --checkpoint logs/", "checkpoints here are tiny"),
    (r"self_filter \\", r"self_filter --model_config hook-tiny.json \\", "a GPU model"),
    (r"--model ViT-B-32 ", "--model hook-tiny ", "a GPU model"),
    (r"--samples_per_round 12800000", "--samples_per_round 64", "days on a CPU"),
    (
        "from open_clip_train.main import main\n",
        "from open_clip_train.main import main\nimport open_clip\n"
        'open_clip.add_model_config("hook-tiny.json")\n',
        "a GPU model",
    ),
    (r"--train-num-samples 12800000", "--train-num-samples 64", "days on a CPU"),
    (
        r"(--shards_dir imagenet --metadata_dir )imagenet_npz",
        r"\1imagenet_npz_of_a_tiny_model",
        "the block after it wants embeddings as wide as the pool's",
    ),
    (r"--rounds 3", "--rounds 1", "minutes"),
    (r"--batch-size 512", "--batch-size 32", "the pool has 420 pairs"),
    (r"--precision amp", "--precision fp32", "needs a GPU"),
]
"""Changes to commands that make them small enough for a test, and the reason."""
