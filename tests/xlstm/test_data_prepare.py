"""Preparing a corpus: split, de-duplication, hash, snapshot, sources, tokenizers and errors."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm.data import Corpus, CorpusError, CorpusSpec, load_corpus, prepare_corpus
from xlstm.data.prepare import unigram_cross_entropy


def write_files(root: Path, texts: dict[str, str]) -> CorpusSpec:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return CorpusSpec(name="t", source="files", paths=(str(root),), validation_fraction=0.25)


def forty_files(root: Path) -> CorpusSpec:
    return write_files(
        root, {f"{i % 3}/f{i}.txt": f"def f{i}():\n    return {i * i}\n" * (i + 1) for i in range(40)}
    )


def decoded_documents(corpus: Corpus, split: str) -> list[bytes]:
    return getattr(corpus, split).tobytes().removesuffix(b"\0").split(b"\0")


def listing(corpus: Corpus) -> list[dict[str, str]]:
    return [json.loads(line) for line in (corpus.folder / "documents.jsonl").read_text().splitlines()]


def test_splits_share_no_file_and_no_content(tmp_path: Path) -> None:
    spec = forty_files(tmp_path / "text")
    for i in range(40):  # a copy of every file under another name
        source = tmp_path / "text" / f"{i % 3}/f{i}.txt"
        (tmp_path / "text" / f"copy{i}.txt").write_bytes(source.read_bytes())
    corpus = prepare_corpus(spec, tmp_path / "c")
    train, validation = (decoded_documents(corpus, split) for split in ("train", "validation"))
    assert len(train) == 30
    assert len(validation) == 10
    assert not set(train) & set(validation)
    assert len(set(train + validation)) == 40
    assert corpus.meta.skipped == {"duplicate": 40}
    names = {
        split: {d["name"] for d in listing(corpus) if d["split"] == split}
        for split in ("train", "validation")
    }
    assert not names["train"] & names["validation"]


def test_tokens_are_the_files_bytes(tmp_path: Path) -> None:
    spec = forty_files(tmp_path / "text")
    corpus = prepare_corpus(spec, tmp_path / "c")
    found = sorted(decoded_documents(corpus, "train") + decoded_documents(corpus, "validation"))
    assert found == sorted(p.read_bytes() for p in (tmp_path / "text").rglob("*.txt"))
    assert corpus.train.dtype == np.uint8
    assert (
        corpus.meta.train.tokens == len(corpus.train) == corpus.meta.train.bytes + corpus.meta.train.documents
    )


def test_hash_depends_on_content_and_seed_alone(tmp_path: Path) -> None:
    here = prepare_corpus(forty_files(tmp_path / "a" / "text"), tmp_path / "c1")
    there = prepare_corpus(forty_files(tmp_path / "b" / "text"), tmp_path / "c2")
    assert here.spec() == there.spec()
    (tmp_path / "b" / "text" / "0" / "f3.txt").write_text("other")
    changed = prepare_corpus(
        there_spec := forty_files_spec(tmp_path / "b" / "text"), tmp_path / "c2", refresh=True
    )
    assert changed.spec().content_hash != here.spec().content_hash
    other_seed = CorpusSpec(**{**there_spec.__dict__, "seed": 1})
    assert prepare_corpus(other_seed, tmp_path / "c3").spec() != changed.spec()


def forty_files_spec(root: Path) -> CorpusSpec:
    return CorpusSpec(name="t", source="files", paths=(str(root),), validation_fraction=0.25)


def test_hash_is_that_of_the_stored_tokens(tmp_path: Path) -> None:
    corpus = prepare_corpus(forty_files(tmp_path / "text"), tmp_path / "c")
    corpus.verify()
    assert load_corpus(tmp_path / "c").meta == corpus.meta
    tokens = bytearray((tmp_path / "c" / "train.bin").read_bytes())
    tokens[5] ^= 1
    (tmp_path / "c" / "train.bin").write_bytes(tokens)
    with pytest.raises(CorpusError, match=r"train\.bin: content has changed"):
        load_corpus(tmp_path / "c").verify()
    (tmp_path / "c" / "train.bin").write_bytes(tokens[:-1])
    with pytest.raises(CorpusError, match=r"train\.bin: \d+ bytes where \d+ are due"):
        load_corpus(tmp_path / "c")


def test_a_prepared_corpus_is_a_snapshot(tmp_path: Path) -> None:
    spec = forty_files(tmp_path / "text")
    first = prepare_corpus(spec, tmp_path / "c")
    (tmp_path / "text" / "new.txt").write_text("installed later")
    assert prepare_corpus(spec, tmp_path / "c").meta == first.meta
    assert prepare_corpus(spec, tmp_path / "c", refresh=True).spec() != first.spec()
    with pytest.raises(CorpusError, match=r"prepared with data\.max_bytes = None, now 10 is asked for"):
        prepare_corpus(CorpusSpec(**{**spec.__dict__, "max_bytes": 10}), tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".c.lock", "c", "text"]


def test_an_interrupted_preparation_is_done_again(tmp_path: Path) -> None:
    spec = forty_files(tmp_path / "text")
    (tmp_path / ".c.unfinished").mkdir()
    (tmp_path / ".c.unfinished" / "train.bin").write_bytes(b"half")
    corpus = prepare_corpus(spec, tmp_path / "c")
    corpus.verify()
    assert not (tmp_path / ".c.unfinished").exists()


def test_max_bytes_bounds_the_text(tmp_path: Path) -> None:
    spec = forty_files(tmp_path / "text")
    bounded = prepare_corpus(CorpusSpec(**{**spec.__dict__, "max_bytes": 8000}), tmp_path / "c")
    size = bounded.meta.train.bytes + bounded.meta.validation.bytes
    assert 6000 < size <= 8000
    whole = {d["name"]: d["split"] for d in listing(prepare_corpus(spec, tmp_path / "d"))}
    assert {d["name"]: d["split"] for d in listing(bounded)}.items() <= whole.items()


@given(
    st.lists(st.integers(0, 50), min_size=3, max_size=3), st.lists(st.integers(0, 50), min_size=3, max_size=3)
)
def test_unigram_cross_entropy_is_the_smoothed_mean(train: list[int], validation: list[int]) -> None:
    validation[0] += 1
    total = sum(train) + 3
    tokens = [t for t, n in enumerate(validation) for _ in range(n)]
    expected = -sum(math.log((train[t] + 1) / total) for t in tokens) / len(tokens)
    assert unigram_cross_entropy(np.array(train), np.array(validation)) == pytest.approx(expected, rel=1e-12)


def test_bits_per_byte(tmp_path: Path) -> None:
    corpus = prepare_corpus(forty_files(tmp_path / "text"), tmp_path / "c")
    loss = 1.7
    total_bits = loss * len(corpus.validation) / math.log(2)
    assert corpus.bits_per_byte(loss) == pytest.approx(total_bits / corpus.meta.validation.bytes)


def test_installed_sources_are_found_and_bounded(tmp_path: Path) -> None:
    corpus = prepare_corpus(CorpusSpec(max_bytes=300_000), tmp_path / "c")
    assert corpus.meta.unigram_entropy < math.log(256)
    names = [d["name"] for d in listing(corpus)]
    assert all(name.startswith(("stdlib/", "site-packages/", "platlib/")) for name in names)
    assert {name.split("/")[0] for name in names} >= {"site-packages"}
    assert b"import" in corpus.train.tobytes()


def test_unusable_sources_are_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "lib"
    for i in range(10):
        (root / "pkg").mkdir(parents=True, exist_ok=True)
        (root / "pkg" / f"m{i}.py").write_text(f"x = {i}\n")
    (root / "pkg" / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    (root / "pkg" / "table.py").write_text("x = 1\n" * 100_000)
    (root / "pkg" / "empty.py").write_text(" \n")
    (root / "pkg" / "nul.py").write_bytes(b"x = '\0'\n")
    (root / "pkg" / "__editable___isoflop_finder.py").write_text("paths = {}\n")
    monkeypatch.setattr("xlstm.data.sources.python_roots", lambda: {"lib": root})
    corpus = prepare_corpus(CorpusSpec(validation_fraction=0.5), tmp_path / "c")
    assert corpus.meta.skipped == {
        "not UTF-8": 1,
        "larger than 524288 bytes": 1,
        "empty": 1,
        "contains NUL, the separator": 1,
    }
    assert corpus.meta.train.documents + corpus.meta.validation.documents == 10


def test_rows_of_jsonl_and_parquet(tmp_path: Path) -> None:
    texts = [f"row {i} ü" for i in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts[:4]) + "\n")
    pl.DataFrame({"body": texts[4:]}).write_parquet(tmp_path / "b.parquet")
    paths = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet"))
    spec = CorpusSpec(source="files", paths=paths, text_field="body", validation_fraction=0.5)
    corpus = prepare_corpus(spec, tmp_path / "c")
    found = decoded_documents(corpus, "train") + decoded_documents(corpus, "validation")
    assert sorted(d.decode() for d in found) == sorted(texts)


def test_one_large_file_is_cut_at_a_separator(tmp_path: Path) -> None:
    (tmp_path / "plays.txt").write_text("to be\n\nor not\n\nto be or")
    spec = CorpusSpec(source="files", paths=(str(tmp_path / "plays.txt"),), validation_fraction=0.5)
    with pytest.raises(CorpusError, match=r"one document cannot be split.*data\.document_separator"):
        prepare_corpus(spec, tmp_path / "c")
    corpus = prepare_corpus(CorpusSpec(**{**spec.__dict__, "document_separator": "\n\n"}), tmp_path / "c")
    assert decoded_documents(corpus, "validation") == [b"to be", b"to be or"]
    assert decoded_documents(corpus, "train") == [b"or not"]


def test_bpe_trained_on_the_corpus(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    spec = CorpusSpec(**{**forty_files(tmp_path / "text").__dict__, "tokenizer": "bpe:300"})
    corpus = prepare_corpus(spec, tmp_path / "c")
    assert corpus.meta.vocab_size == 300
    assert corpus.train.dtype == np.uint16
    assert corpus.meta.tokenizer == "bpe-300"
    assert corpus.meta.bytes_per_token > 1.5
    tokenizer = Tokenizer.from_file(str(tmp_path / "c" / "tokenizer.json"))
    ends = np.flatnonzero(corpus.validation == corpus.meta.separator)
    assert len(ends) == corpus.meta.validation.documents
    first = tokenizer.decode(corpus.validation[: ends[0]].tolist())
    assert first in {p.read_text() for p in (tmp_path / "text").rglob("*.txt")}
    # The same tokenizer from its file gives the same tokens.
    from_file = CorpusSpec(**{**spec.__dict__, "tokenizer": str(tmp_path / "c" / "tokenizer.json")})
    again = prepare_corpus(from_file, tmp_path / "d")
    assert again.spec().content_hash == corpus.spec().content_hash


def spec_of(tmp_path: Path, **fields: object) -> CorpusSpec:
    return CorpusSpec(**{"source": "files", "paths": (str(tmp_path),), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, {"paths": ("missing",)}, r"missing: no such file or folder \(data\.paths\)"),
        ({}, {}, r"text: no files in this folder"),
        ({"a.txt": "", "b.txt": "\n"}, {}, r"no text for the \w+ split \(documents left out: 2 empty\)"),
        ({"a.txt": "abc", "b.txt": "abd"}, {"max_bytes": 2}, r"no text for .*data\.max_bytes = 2"),
        ({"a.jsonl": '{"text": "a"}\n{"body": "b"}\n'}, {}, r"a\.jsonl:2: no text in field 'text'"),
        ({"a.jsonl": '{"text": \n'}, {}, r"a\.jsonl:1: not JSON"),
        ({"a.parquet": "no"}, {}, r"a\.parquet: not a Parquet file"),
        (
            {"a.txt": "abc", "b.txt": "abd"},
            {"tokenizer": "missing.json"},
            r"missing\.json': write bytes, bpe:<size>",
        ),
        ({"a.txt": "abc", "b.txt": "abd"}, {"tokenizer": "bpe:4096"}, r"the text yields only \d+ tokens"),
    ],
)
def test_errors_name_culprit_and_cure(
    tmp_path: Path, files: dict[str, str], fields: dict[str, object], message: str
) -> None:
    root = tmp_path / "text"
    root.mkdir()
    write_files(root, files)
    with pytest.raises(CorpusError, match=message) as error:
        prepare_corpus(spec_of(root, **fields), tmp_path / "c")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "c").exists()


def test_a_named_file_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(CorpusError, match=r"a\.txt: not UTF-8 text at byte 3"):
        prepare_corpus(spec_of(tmp_path), tmp_path / "c")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_named_file_must_be_readable(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(CorpusError, match=r"a\.txt: cannot be read: Permission denied"):
        prepare_corpus(spec_of(tmp_path), tmp_path / "c")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, r"data\.name = 'a/b'"),
        ({"validation_fraction": 0.0}, r"data\.validation_fraction = 0\.0"),
        ({"max_bytes": -1}, r"data\.max_bytes = -1"),
        ({"source": "files"}, r"data\.paths is empty"),
        ({"source": "huggingface"}, r"data\.dataset is empty"),
        ({"tokenizer": "bpe:x"}, r"write bpe:<vocabulary size>"),
        ({"tokenizer": "bpe:100"}, r"need 257 tokens"),
    ],
)
def test_impossible_specs(fields: dict[str, object], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        CorpusSpec(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({}, "python"),
        ({"source": "files", "paths": ("texts/my poems",)}, "my-poems"),
        ({"source": "files", "paths": ("/a/plays.jsonl", "/b/other.txt")}, "plays"),
        ({"source": "files", "paths": ("dumps/v1.2/",)}, "v1.2"),
        ({"source": "files", "paths": ("texts/plays/../poems",)}, "poems"),
        ({"source": "files", "paths": ("/",)}, "files"),
        ({"source": "files", "paths": ("стихи",)}, "files"),
        ({"source": "files", "paths": ("texts",), "name": "mine"}, "mine"),
        ({"source": "huggingface", "dataset": "org/a-set"}, "a-set"),
        ({"source": "huggingface", "dataset": "set"}, "set"),
    ],
)
def test_a_corpus_is_called_after_its_text(fields: dict[str, object], label: str) -> None:
    spec = CorpusSpec(**fields)  # type: ignore[arg-type]
    assert (spec.label, spec.folder_name) == (label, f"{label}-bytes")


@given(st.text(min_size=1).filter(lambda name: "\0" not in name))
def test_every_path_gives_a_name_that_could_be_given(path: str) -> None:
    label = CorpusSpec(source="files", paths=(path,)).label
    assert CorpusSpec(name=label).label == label


def test_the_name_after_a_path_is_for_people_and_no_part_of_keys(tmp_path: Path) -> None:
    """What was trained when all unnamed text was called python is found again."""
    forty_files(tmp_path / "poems")
    corpus = prepare_corpus(spec_of(tmp_path / "poems"), tmp_path / "unnamed")
    before = prepare_corpus(spec_of(tmp_path / "poems", name="python"), tmp_path / "before")
    assert (corpus.meta.name, before.meta.name) == ("poems", "python")
    assert corpus.spec() == before.spec()
    assert corpus.spec().name == "python"
    named = spec_of(tmp_path / "poems", name="poems")
    assert prepare_corpus(named, tmp_path / "named").spec().name == "poems"
    with pytest.raises(CorpusError, match=r"data\.name = None, now 'poems' is asked .* other than 'poems'"):
        prepare_corpus(named, tmp_path / "unnamed")


def test_a_corpus_that_was_prepared_under_the_old_default_is_used(tmp_path: Path) -> None:
    first = prepare_corpus(CorpusSpec(max_bytes=300_000), tmp_path / "c")
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    meta["source"]["name"] = "python"
    (tmp_path / "c" / "meta.json").write_text(json.dumps(meta))
    again = prepare_corpus(CorpusSpec(max_bytes=300_000), tmp_path / "c")
    assert (again.spec(), again.meta.created_at) == (first.spec(), first.meta.created_at)


def test_hugging_face_rows_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    calls: list[tuple[object, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        calls.append((name, config, split, streaming))
        return [{"text": f"document {i}"} for i in range(6)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    spec = CorpusSpec(source="huggingface", dataset="org/set", validation_fraction=0.5)
    corpus = prepare_corpus(spec, tmp_path / "c")
    assert decoded_documents(corpus, "validation") == [b"document 0", b"document 2", b"document 4"]
    assert calls == [("org/set", None, "train", True)]


def test_hugging_face_names_the_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"pip install 'isoflop\[hf\]'"):
        prepare_corpus(CorpusSpec(source="huggingface", dataset="org/set"), tmp_path / "c")


def test_two_processes_prepare_one_corpus(tmp_path: Path) -> None:
    forty_files(tmp_path / "text")
    code = (
        "from pathlib import Path; from xlstm.data import *;"
        f"spec = CorpusSpec(source='files', paths=({str(tmp_path / 'text')!r},));"
        f"c = prepare_corpus(spec, Path({str(tmp_path / 'c')!r}));"
        "c.verify(); print(c.meta.created_at, c.meta.content_hash);"
        "import sys; assert 'torch' not in sys.modules"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = {child.communicate(timeout=60)[0] for child in children}
    assert all(child.returncode == 0 for child in children)
    assert len(outputs) == 1
