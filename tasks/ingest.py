"""Ingest: files, datasets and the built-in world become tables; every prompt gets its one split.

A prompt is kept verbatim but for NFC (it may end with a newline on purpose); responses, documents
and ranked texts also lose the white space at their ends. Prompts of all roles, those of the
rankings too, are in the table `prompts`. Documents of the corpus are split like prompts, by the
hash of the text, so that a part of them can be held out.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_core.config import PipelineConfig, Source, Split
from rlhf_core.errors import InputError
from tasks.ranking_tables import CandidateBook, RankingBook, lines_of
from tasks.readers import (
    Demonstration,
    Document,
    Example,
    PromptExample,
    Rejected,
    SourceReader,
    digest_sources,
    source_names,
)
from tasks.splits import SPLITS, SplitBook
from tasks.step import StepRun, step
from tasks.tables import TABLES, digest_id


def external(config: PipelineConfig) -> dict[str, str]:
    """Name -> content of each source; for the demo world its version.

    Raises:
        InputError: a source is not there or cannot be read.
    """
    sources = config.ingest.sources
    contents = digest_sources(sources, Path(config.paths.data))
    if any(source.kind == "demo_world" for source in sources):
        from tasks.demo_world import WORLD_VERSION

        contents["demo_world"] = f"version {WORLD_VERSION}"
    return contents


class _Collected:
    """All examples of all sources, each text once."""

    def __init__(self) -> None:
        self.prompts = SplitBook("prompt")
        self.corpus = SplitBook("document")
        self.demonstrations: dict[tuple[str, str], str] = {}
        """(prompt_id, response) -> source"""
        self.rankings = RankingBook(CandidateBook())
        self.rejected: list[Rejected] = []
        self.num_merged = {"corpus": 0, "prompts": 0, "demonstrations": 0}

    def add(self, example: Example, *, name: str, line: int, allowed: Collection[Split]) -> None:
        """One example of source `name`, whose prompts may fall into `allowed` (none: all)."""
        if isinstance(example, Document):
            _, new = self.corpus.add(example.text, name, allowed)
            self.num_merged["corpus"] += not new
            return
        prompt_id, new = self.prompts.add(example.prompt, name, allowed)
        if isinstance(example, PromptExample):
            self.num_merged["prompts"] += not new
        elif isinstance(example, Demonstration):
            key = (prompt_id, example.response)
            self.num_merged["demonstrations"] += key in self.demonstrations
            self.demonstrations.setdefault(key, name)
        else:
            self.rankings.add(example, source=name, line=line)


@step(
    version=2,
    sections=(
        "ingest.sources",
        "ingest.max_rejected_share",
        "ingest.split_shares",
        "ingest.split_salt",
        "ingest.demo_prompts",
        "ingest.demo_corpus",
        "seed",
    ),
    external=external,
)
def ingest(run: StepRun) -> None:
    """Read all sources and publish corpus, prompts, demonstrations, candidates, rankings, rejected.

    Raises:
        InputError: a source cannot be used, has too many bad rows, a prompt is fixed to two splits,
            or there are no prompts or no demonstrations at all.
    """
    collected = _Collected()
    sources = run.config.ingest.sources
    for source, name in zip(sources, source_names(sources), strict=True):
        if source.kind == "demo_world":
            _read_demo_world(run.config, source, collected)
        else:
            _read_source(run, source, name, collected)
    _check_not_empty(collected)
    _publish(run, collected)


def _read_source(run: StepRun, source: Source, name: str, collected: _Collected) -> None:
    reader = SourceReader(
        source,
        name=name,
        data_dir=Path(run.config.paths.data),
        max_rejected_share=run.config.ingest.max_rejected_share,
    )
    for line, example in reader.examples():
        if example.split and source.splits and example.split not in source.splits:
            reader.reject(f"split: {example.split} is not among the source's splits")
            continue
        allowed = [example.split] if example.split else source.splits
        collected.add(example, name=name, line=line, allowed=allowed)
    collected.rejected += reader.rejected
    run.log(f"{name}: {reader.summary()}")


def _read_demo_world(config: PipelineConfig, source: Source, collected: _Collected) -> None:
    from tasks.demo_world import generate_corpus, generate_demonstrations, generate_prompts

    def limited(number: int) -> int:
        return number if source.limit is None else min(number, source.limit)

    prompts = generate_prompts(limited(config.ingest.demo_prompts), config.seed)
    demonstrations = generate_demonstrations(prompts, config.seed)
    documents = generate_corpus(
        limited(config.ingest.demo_corpus), config.seed, exclude=set(prompts)
    )
    examples: list[Example] = [Document(text, None) for text in documents]
    examples += [Demonstration(prompt, text, None) for prompt, text in demonstrations]
    for line, example in enumerate(examples, start=1):
        collected.add(example, name="demo_world", line=line, allowed=source.splits)


def _check_not_empty(collected: _Collected) -> None:
    if not len(collected.prompts):
        raise InputError(
            "ingest.sources give no prompts; add a source of role demonstrations or prompts"
        )
    if not collected.demonstrations:
        raise InputError("ingest.sources give no demonstrations; add a source of that role")


def _publish(run: StepRun, collected: _Collected) -> None:
    settings: dict[str, Any] = {
        "shares": run.config.ingest.split_shares,
        "salt": run.config.ingest.split_salt,
    }
    prompts = list(collected.prompts.assign(**settings))
    corpus = list(collected.corpus.assign(**settings))
    split_of = {prompt_id: split for prompt_id, _, _, split in prompts}
    demonstrations = [
        (prompt_id, response, source, split_of[prompt_id])
        for (prompt_id, response), source in collected.demonstrations.items()
    ]
    if not corpus:
        corpus = _corpus_of_demonstrations(prompts, demonstrations)
        run.log(
            f"no source has the role corpus: {len(corpus)} texts of the demonstrations stand in"
        )
    rejected = [(bad.source, bad.line, bad.reason, bad.content) for bad in collected.rejected]
    for table, rows in (
        ("corpus", corpus),
        ("prompts", prompts),
        ("demonstrations", demonstrations),
        ("rejected", rejected),
    ):
        run.write(table, _from_tuples(table, rows))
    for table, records in (
        ("candidates", collected.rankings.candidates.rows),
        ("rankings", list(collected.rankings.rows.values())),
    ):
        run.write(table, pa.Table.from_pylist(records, schema=TABLES[table].schema))
    ranking_facts = collected.rankings.facts()
    facts = {
        "num_documents": len(corpus),
        "num_prompts": len(prompts),
        **{f"prompts_{split}": 0 for split in SPLITS},
        "num_demonstrations": len(demonstrations),
        **{f"demonstrations_{split}": 0 for split in SPLITS},
        "num_candidates": len(collected.rankings.candidates.rows),
        **ranking_facts,
        **{f"merged_{table}": number for table, number in collected.num_merged.items()},
        "rejected_rows": len(rejected),
    }
    for split in split_of.values():
        facts[f"prompts_{split}"] += 1
    for *_, split in demonstrations:
        facts[f"demonstrations_{split}"] += 1
    for name, value in facts.items():
        run.fact(name, value)
    for line in lines_of(facts, _EXPLAINED):
        run.log(line)


def _corpus_of_demonstrations(
    prompts: list[tuple[Any, ...]], demonstrations: list[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """Prompts and responses of the split `sft`: enough for a tokenizer, and nothing held out."""
    texts = {text: source for _, text, source, split in prompts if split == "sft"}
    texts |= {text: source for _, text, source, split in demonstrations if split == "sft"}
    return [(digest_id(text), text, source, "sft") for text, source in texts.items()]


_EXPLAINED = (
    ("merged_corpus", "documents repeat another and were merged"),
    ("merged_prompts", "prompts repeat another and were merged"),
    ("merged_demonstrations", "demonstrations repeat another exactly and were merged"),
    ("merged_ranked_texts", "texts repeat another of their ranking and share its mean rank"),
    ("rankings_of_one_text", "rankings hold one text only, compare nothing, and were left out"),
    ("repeated_rankings", "rankings were read before and count once"),
    ("rejected_rows", "rows were rejected; see the table `rejected`"),
)


def _from_tuples(table: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    schema = TABLES[table].schema
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [
        pa.array(list(column), type=field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
