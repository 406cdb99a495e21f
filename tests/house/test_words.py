"""One word, one meaning: words that were given up do not come back, and the glossary is in order.

A grep finds names, options and fragments. It cannot tell a good sentence from a bad one: CONTRIBUTING.md
describes the prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVERYWHERE = ("sparsebert", "kernels", "docs", "README.md")
CODE = ("sparsebert", "kernels")
CPU = ("kernels/sparsebert_kernels/cpu",)
# Where panels of 16 tokens, paired panels, meet those of rows.
PAIRED = tuple(
    str(path.relative_to(ROOT))
    for pattern in ("row_panels.py", "src/paired*.h", "src/row_panel*.h", "src/tile_products.h")
    for path in (ROOT / CPU[0]).glob(pattern)
)
SUFFIXES = {".py", ".h", ".cpp", ".md", ".html"}
# The one place that knows the former names of options, and the page that lists them.
ALIASES = ("sparsebert/cli/renamed_options.py", "docs/command-line.md")


@dataclass(frozen=True)
class GivenUp:
    """A pattern that must not match, the word to use instead, the files to look in and those to leave out."""

    pattern: str
    instead: str
    where: tuple[str, ...] = EVERYWHERE
    except_in: tuple[str, ...] = ()


GIVEN_UP = (
    # Names of classes and functions.
    GivenUp(r"\bSelected\b", "TargetLayer"),
    GivenUp(r"\bLeft\b(?!,? (to|and))|\bleft_of\b", "CompactedTargets", CODE),
    GivenUp(r"\b_Draft\b", "_LayerDecision"),
    GivenUp(r"\bWork\b(?=[\[(,|:\]])|class Work\b|(?<![\w_])works\(", "WorkEstimate, estimate_work", CODE),
    GivenUp(r"\.knows\(|def knows\b", "supports"),
    GivenUp(r"\bdef rewrite\b|\brewrite\(", "export_model"),
    GivenUp(r"\bticket_of\b", "load_ticket"),
    GivenUp(r"\bexpected_gain\b", "estimate_speedup"),
    GivenUp(r"\bBeginning\b", "RoundStart", CODE),
    GivenUp(r"(?<!_)\bRequest\b(?=[\[(,|:\])]|$)|class Request\b", "RunConfig", CODE),
    GivenUp(r"(?<![\w.])Units\b(?=[\[(|\])])|class Units\b", "PruningUnits", CODE),
    GivenUp(r"\bJudged\b", "MetricThresholdSearch"),
    GivenUp(r"\bLooksAtBatches\b", "NeedsBatches"),
    GivenUp(r"\baccompan\w+|\bCompanion\b", "round_hooks, RoundHooks"),
    GivenUp(r"\bSource\.(FOUND|ALL|GIVEN)\b", "Source.SEARCH, DENSE, USER"),
    GivenUp(r"\bfinds_sparsity\b", "decides_sparsity"),
    GivenUp(r"\bGivenTicket\b", "FromTicket"),
    GivenUp(r"\bLearnedMethod\b", "MaskLearningMethod"),
    GivenUp(r"(?<!setup-)(?<!requirements-)\brivals?\b", "baselines; competition_groups"),
    GivenUp(r"\bProvider\b|\bSide\b", "Backend, BuiltBackend"),
    GivenUp(r"\bPrepared\b", "CompactionPlan", CODE),
    GivenUp(
        r"(?<!\w)(narrow|widen|remember|forget)_\b",
        "shrink_attention_, restore_attention_, attach_record_, detach_record_",
    ),
    GivenUp(r"\bpick_format\b|\bChoice\b|\bBestChoice\b", "candidates; BestMasks", CODE),
    GivenUp(r"\btuning\.Paired\b", "timing"),
    # Modules that moved.
    GivenUp(
        r"\bsparsebert[./](learned|data|ticket_file|stored|swap|convert|folders|foreign\w*|removal|selection|machine|"
        r"roofline|choice|expansion|metrics|judged|unit_masks|unit_search|registration)\b",
        "the module's new path (docs/architecture.md)",
    ),
    # Options of the command.
    GivenUp(
        r"(?<![\w-])--(every|first|of|share|within|draw)(?![\w-])", "the option's new name", except_in=ALIASES
    ),
    # Locals named by their history instead of their content.
    GivenUp(
        r"^\s*(for )?(\w+, )*(found|known|own|chosen|asked)(, \w+)*(: [^=]+)? (=|in) ",
        "a name for the thing itself",
        CODE,
    ),
    # Panels of tokens and rows of vectors.
    GivenUp(r"(?<![Tt]oken )(?<!token_)(?<!row )\bpanels?\b", "token_panel, vector_row", CPU, PAIRED),
    # Phrases.
    GivenUp(r"\btak(e|es|en|ing) out\b|\bempties\b", "remove, compaction; pruned-out neurons"),
    GivenUp(
        r"\b(what|that) (is|are) left\b|\bwhat it leaves\b|\bis left of\b", "the remaining ..., compaction"
    ),
    GivenUp(
        r"(?<![Tt]here )\b(is|are) no (?!longer\b|more\b|slower\b|faster\b|worse\b|sparser\b)",
        "is not a, or a positive sentence",
    ),
    GivenUp(r"\b[Dd]earest\b", "most costly"),
    GivenUp(r"\bBase of (them|these|those|the|all)\b", "Base class of ..."),
    GivenUp(r"\bhonest(ly)?\b", "the fact itself", ("sparsebert", "kernels", "README.md")),
    GivenUp(r"\bwhat it is told\b|\bis told what\b|\bis told:", "an argument's name and meaning"),
)


@pytest.mark.parametrize("word", GIVEN_UP, ids=lambda word: re.sub(r"\W+", "-", word.instead))
def test_a_word_that_was_given_up_stays_away(word: GivenUp) -> None:
    hits = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in _files(word)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(word.pattern, line)
    ]
    assert not hits, f"use {word.instead}:\n" + "\n".join(hits)


def _files(word: GivenUp) -> Iterator[Path]:
    for place in word.where:
        path = ROOT / place
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.suffix in SUFFIXES and str(file.relative_to(ROOT)) not in word.except_in:
                yield file
