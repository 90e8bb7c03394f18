"""The model card section: it says what checkpoint and audit say, of this model only; strangers' text stays text; the rest of a card stays as it is."""

import json
import os
import re
import shlex
import unicodedata
import warnings

import pytest
import torch
from torch import nn

from expunge import FineTune, GradientAscent, forget_classes, forget_samples, load_data, save_model
from expunge.costs import Cost
from expunge.errors import DataError, MissingError, StoreError
from expunge.models import read_metadata
from expunge.models.lineage import changes, describe_ids, describe_split, unlearning_record
from expunge.report import page, render
from expunge.report.markdown import code, prose, visible
from expunge.report.model_card import BEGIN, END, model_card, with_section, write_card
from report.pages import HOSTILE, VERDICTS

FIRST, SECOND = [3, 14, 15], [92, 65]
EVIL = (
    HOSTILE
    + f"\n{END}\n# heading\n> quote\n```\n| a | b |\n\x1b[31mred\x1b[0m \u202eleft [x](javascript:alert(1)) ![y](http://z) `tick` ``two`` https://evil.example"
)


@pytest.fixture(scope="module")
def train():
    return load_data("digits").train


@pytest.fixture
def chain(tmp_path, train):
    """An original and a model after each of two requests, on the way that the command line makes them."""
    models = [nn.Linear(2, k) for k in (2, 3, 4)]
    save_model(
        models[0],
        tmp_path / "0.safetensors",
        metadata={"seed": 7, "provenance": {"torch": "2.0"}, "recipe": {"class": "Recipe", "epochs": 2}},
    )
    for k, (ids, method) in enumerate([(FIRST, FineTune(lr=0.02)), (SECOND, GradientAscent())], start=1):
        told = read_metadata(tmp_path / f"{k - 1}.safetensors")
        record = unlearning_record(
            method, forget_samples(train, ids), models[k - 1], seed=k, history=told, cost=Cost(seconds=1.5), accuracy={"test": 0.9}
        )
        save_model(models[k], tmp_path / f"{k}.safetensors", metadata=record)
    return tmp_path


def audit_of(sample, path, forget, name="AMUN"):
    """The sample audit, as if it were of the model in this file and of these samples."""
    hashes = {name: read_metadata(path)["model_hash"]}
    models = [m | {"hash": hashes.get(m["name"], describe_ids([k])["digest"])} for k, m in enumerate(sample["models"])]
    return sample | {"models": models, "forget": forget, "verdicts": VERDICTS, "protocol": "standard-1"}


@pytest.fixture
def audit(chain, sample, train):
    return audit_of(sample, chain / "1.safetensors", describe_split(forget_samples(train, FIRST)))


def test_a_card_without_an_audit_says_so_and_what_the_checkpoint_says(chain, train):
    card = model_card(chain / "1.safetensors")
    assert "**Nobody measured.**" in card and "Verdict" not in card
    for words in (
        "3 of 1,000 training images", "`fine_tune`", "lr=0.02, ", "seed 1", describe_ids(FIRST)["digest"], train.fingerprint,
        read_metadata(chain / "0.safetensors")["model_hash"], read_metadata(chain / "1.safetensors")["model_hash"], "1.5 s", "test 90.0 %", FineTune.paper.split()[0],
        "Not a legal", "not proven",
    ):  # fmt: skip
        assert words in card, words


def test_a_card_says_what_its_audit_found(chain, audit):
    card = model_card(chain / "1.safetensors", audit)
    assert "Nobody measured" not in card
    mine = next(line for line in card.splitlines() if "**AMUN** (this model)" in line)
    row = next(m for m in audit["models"] if m["name"] == "AMUN")
    assert (
        f"{100 * row['forget']['value']:.1f}" in mine and f"{100 * row['forget']['low']:.1f} to {100 * row['forget']['high']:.1f}" in mine
    )
    attack = next(a for a in audit["attacks"] if (a["attack"], a["model"]) == ("RMIA", "AMUN"))
    assert any("RMIA" in line and f"{attack['auc']['value']:.3f}" in line for line in card.splitlines() if "(this model)" in line)
    for words in (
        "> **Cannot tell.** By protocol standard-1",
        "Null floor:",
        "up to 1.4 (",
        "2 retrained models and 16 shadow models",
        "Protocol standard-1",
        "TooFewNonMembers",
    ):
        assert words in card, words
    assert "GradientAscent" not in card.replace("GradientAscent(", "") and "1 more model in the same audit" in card
    assert "expunge audit --protocol standard-1 --original" in card


def test_result_dict_json_and_page_give_the_same_card(chain, audit, tmp_path):
    audit = audit | {"histograms": [], "attacks": [row | {"roc": None} for row in audit["attacks"]]}  # figures take a second

    class Result:
        def to_dict(self):
            return audit

    (tmp_path / "a.json").write_text(json.dumps(audit))
    render(audit, tmp_path / "a.html")
    cards = {
        model_card(chain / "1.safetensors", source) for source in (audit, Result(), tmp_path / "a.json", str(tmp_path / "a.html"), [audit])
    }
    assert len(cards) == 1


def test_an_audit_of_another_model_or_other_samples_is_refused(chain, audit, train, tmp_path):
    out = tmp_path / "card.md"
    out.write_text("mine")
    others = {
        "one of other models .*'AMUN'": (chain / "2.safetensors", audit),
        "of the samples that the model was made to forget; got one of 2 others": (
            chain / "1.safetensors", audit | {"forget": describe_split(forget_samples(train, SECOND))},
        ),
        "or of the same positions in other data": (chain / "1.safetensors", audit | {"forget": audit["forget"] | {"data": "0" * 64}}),
        "older version": (chain / "1.safetensors", audit | {"models": [m | {"hash": None} for m in audit["models"]]}),
        "of a file of answers": (chain / "1.safetensors", audit | {"forget": None}),
    }  # fmt: skip
    for message, (path, given) in others.items():
        with pytest.raises(DataError, match=message):
            model_card(path, given, path=out)
    assert out.read_text() == "mine"


def test_weights_decide_which_model_it_is_not_the_metadata(chain, audit):
    path = chain / "1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        model_card(path, audit)


def test_the_chain_from_the_original_through_every_request_is_told_in_order(chain, sample, train):
    path, hashes = chain / "2.safetensors", [read_metadata(chain / f"{k}.safetensors")["model_hash"] for k in range(3)]
    assert [(s.kind, s.original, s.result) for s in changes(read_metadata(path))][1:] == [
        ("unlearned", hashes[0], hashes[1]),
        ("unlearned", hashes[1], hashes[2]),
    ]
    card = model_card(path)
    places = [card.index(f"- **{title}") for title in ("Trained", "Request 1: unlearned", "Request 2: unlearned")]
    assert places == sorted(places) and "5 training images by 2 requests" in card and "broken" not in card
    assert [h in card for h in hashes] == [True] * 3
    both = audit_of(sample, path, describe_split(forget_samples(train, FIRST + SECOND)))
    one = audit_of(sample, path, describe_split(forget_samples(train, SECOND)))
    card = model_card(path, [one, both])
    assert "#### Audit of request 2" in card and "#### Audit of all requests together" in card


def test_a_chain_that_does_not_hang_together_is_named(chain, train):
    path, model = chain / "x.safetensors", nn.Linear(2, 9)
    record = unlearning_record(FineTune(), forget_samples(train, SECOND), nn.Linear(2, 5), history=read_metadata(chain / "1.safetensors"))
    save_model(model, path, metadata=record)
    assert model_card(path).count("**The chain is broken here**") == 1


def test_a_method_that_changed_nothing_is_named(tmp_path, train):
    model = nn.Linear(2, 2)
    save_model(model, tmp_path / "u.safetensors", metadata=unlearning_record(FineTune(), forget_samples(train, FIRST), model))
    assert "**No weight changed" in model_card(tmp_path / "u.safetensors")


def test_whole_classes_are_named_and_their_audit_needs_no_ids(tmp_path, train, class_sample):
    split, path = forget_classes(train, [3, 5]), tmp_path / "u.safetensors"
    save_model(nn.Linear(2, 2), path, metadata=unlearning_record(FineTune(), split, nn.Linear(2, 3)))
    forget = describe_split(split) | describe_ids([1]) | {"n": len(split.forget), "data": "0" * 64}  # the data of the class alone
    card = model_card(path, audit_of(class_sample, path, forget))
    assert f"{len(split.forget)} of 1,000 training images (all of the classes `3`, `5`)" in card
    assert "unseen, of forgotten classes" in card and "| deer | **AMUN** (this model) |" in card


def test_ids_are_listed_only_if_asked_for_and_theirs(chain):
    path = chain / "2.safetensors"
    assert "3, 14, 15" not in model_card(path)
    assert "Ids of request 1: 3, 14, 15." in model_card(path, ids=[[15, 3, 14]])
    assert "Ids of all requests: 3, 14, 15, 65, 92." in model_card(path, ids=[FIRST + SECOND])
    with pytest.raises(DataError, match="their hash is not in the checkpoint"):
        model_card(path, ids=[[3, 14, 16]])


def test_a_checkpoint_that_forgot_nothing_has_no_card(chain, tmp_path):
    with pytest.raises(DataError, match=r"got 0\.safetensors, which does not"):
        model_card(chain / "0.safetensors")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "m.pt")
    with pytest.raises(DataError, match=r"got m\.pt"):
        model_card(tmp_path / "m.pt")


def hostile_everywhere(value):
    """The same record with every text that is no hash in hostile hands."""
    if isinstance(value, dict):
        return {(EVIL if name.startswith("_") else name): hostile_everywhere(v) for name, v in value.items()}
    if isinstance(value, list):
        return [hostile_everywhere(v) for v in value]
    return EVIL if isinstance(value, str) and not re.fullmatch(r"[0-9a-f]{64}", value) else value


def test_text_of_strangers_stays_text(chain, audit, tmp_path):
    markdown_it = pytest.importorskip("markdown_it")
    record = read_metadata(chain / "2.safetensors")
    hostile = hostile_everywhere({k: v for k, v in record.items() if k != "model_hash"}) | {
        "data": {"name": EVIL, "classes": [EVIL] * 3, "fingerprint": EVIL, "n": 10**400}, "arguments": [EVIL, "--data=$(touch x)`y`", "x" * 10**6],
    }  # fmt: skip
    hostile["forget"] |= {"classes": [EVIL]}
    save_model(nn.Linear(2, 4), tmp_path / "evil`.safetensors", metadata=hostile)
    given = hostile_everywhere(audit) | {"sizes": audit["sizes"], "forget": record["forget"], "reference": EVIL}
    names = [m["name"] for m in audit["models"]]
    given["models"] = [m | {"name": f"{name} {EVIL}"} for m, name in zip(given["models"], names, strict=True)]
    given["models"][1]["hash"] = read_metadata(tmp_path / "evil`.safetensors")["model_hash"]
    given["attacks"] = [a | {"model": f"{b['model']} {EVIL}"} for a, b in zip(given["attacks"], audit["attacks"], strict=True)]
    given["verdicts"] = [{"model": given["models"][1]["name"], "word": "distinguishable", "text": EVIL * 100}]
    card = model_card(tmp_path / "evil`.safetensors", given)

    plain = {character for character in card if unicodedata.category(character) in ("Cc", "Cf", "Cs")}
    assert plain == {"\n"}
    assert [line for line in card.splitlines() if line.startswith("<!--")] == [BEGIN, END]
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(card)
    every = [t for token in tokens for t in (token, *(token.children or []))]
    assert [t.content.strip() for t in every if t.type.startswith("html")] == [BEGIN, END]
    assert not {t.type for t in every} & {"link_open", "image", "hr", "em_open", "s_open"}
    headings = [tokens[k + 1].content for k, t in enumerate(tokens) if t.type == "heading_open"]
    assert headings == [
        "Unlearning", "What was forgotten", "How", "What the audit found", "Audit of request 2", "What this is not", "How to repeat it",
    ]  # fmt: skip
    assert len([t for t in tokens if t.type == "fence"]) == 1 and len([t for t in tokens if t.type == "blockquote_open"]) == 1
    assert len(card) < 60_000
    assert with_section(with_section("", card), card) == with_section("", card)


def test_a_shell_runs_nothing_but_expunge(tmp_path, train):
    record = unlearning_record(FineTune(), forget_samples(train, FIRST), nn.Linear(2, 3))
    words = ["fine_tune; rm -rf x", "--data=$(touch x)", "--set=lr=`y`", "--size=a'b\"c", "&& true", "-o"]
    save_model(nn.Linear(2, 2), tmp_path / "-u; x.safetensors", metadata=record | {"arguments": words})
    block = model_card(tmp_path / "-u; x.safetensors").split("```bash\n")[1].split("\n```")[0]
    (line,) = [line for line in block.splitlines() if not line.startswith("#")]
    assert shlex.split(line) == ["expunge", "unlearn", *words, "--model", "original.safetensors", "-o", "-u; x.safetensors"]


def test_escaped_text_reads_as_it_was():
    markdown_it = pytest.importorskip("markdown_it")
    parse = markdown_it.MarkdownIt("commonmark").enable("table")
    for text in ("resnet_small *x* [a](b) <b>&amp; #1 ~~x~~ $y$ a\\_b \\ ^ {z}", "1. not a list", "a`b``c", "www.x.y http://z"):
        inline = parse.parse(f"x {prose(text)} y")[1].children
        assert "".join(t.content for t in inline) == f"x {text} y" and {t.type for t in inline} <= {"text", "text_special", "entity"}
        (shown,) = [t for t in parse.parse(f"x {code(text)} y")[1].children if t.type == "code_inline"]
        assert shown.content == text
    assert visible("a\u2028b\u0085c\rd\x00e\u200bf") == "a b c d�e�f"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[1]", b"\xff\xfe", b"[" * 200_000, b'{"models": NaN}', b'{"models": 3}', b'{"models": []}', b"<html>no numbers</html>",
        b'{"models": [{"name": "a", "forget": {"value": "1"}}]}', b'{"models": [{"name": "a", "forget": {"value": 1e308}}]}',
        b'{"models": [{"name": 3}]}', b'{"models": [{"name": "a"}, {"name": "a"}]}', b'{"models": [{"name": "a"}], "verdicts": [{"model": "a", "word": "safe", "text": ""}]}',
        b'{"models": [{"name": "a"}], "flags": ["x"]}', b'{"models": [{"name": "a"}], "sizes": [1]}', b'{"models": [{"name": "a", "gaps": 3}]}', b"9" * 5000,
    ],
)  # fmt: skip
def test_a_file_that_is_no_audit_is_refused_by_name(content, chain, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json|does not: it is of an older version"):
        model_card(chain / "1.safetensors", tmp_path / "a.json")


def test_a_missing_audit_is_named(chain):
    with pytest.raises(MissingError, match=r"no file of an audit .*absent\.json"):
        model_card(chain / "1.safetensors", chain / "absent.json")


OWN = "---\nlicense: mit\ntags: [é]\n---\n# My model\n\nText <!-- a comment -->."


@pytest.mark.parametrize("before", [OWN, OWN + "\n", OWN.replace("\n", "\r\n") + "\r\n", "\ufeff# x\n\n", ""])
@pytest.mark.parametrize("after", ["", "\n## More\n\nof mine", "\n\n"])
def test_only_the_section_changes_and_twice_is_once(before, after, chain, tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes(before.encode())
    model_card(chain / "1.safetensors", path=path)
    written = path.read_bytes()
    assert written.startswith(before.encode()) and written.count(BEGIN.encode()) == 1
    ends = b"\r\n" if b"\r\n" in written else b"\n"
    assert written.count(b"\n") == written.count(ends)
    path.write_bytes(written + after.encode().replace(b"\n", ends))
    whole = path.read_bytes()
    model_card(chain / "2.safetensors", path=path)
    assert path.read_bytes() != whole
    model_card(chain / "1.safetensors", path=path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("lines", [[BEGIN], [END], [END, BEGIN], [BEGIN, END, BEGIN, END], [BEGIN, BEGIN, END]])
def test_markers_that_are_no_pair_are_refused_and_the_card_stays(lines, chain, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("\n".join(["# x", *lines, "y"]))
    old = path.read_bytes()
    with pytest.raises(DataError, match="must have one line <!-- expunge card -->"):
        model_card(chain / "1.safetensors", path=path)
    assert path.read_bytes() == old


def test_a_card_that_is_no_text_or_cannot_be_written_stays(chain, tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="must be a text file in UTF-8"):
        model_card(chain / "1.safetensors", path=path)
    assert path.read_bytes() == b"\xff\xfe\x00"
    with pytest.raises(StoreError, match="needs an existing folder"):
        model_card(chain / "1.safetensors", path=tmp_path / "absent" / "README.md")


def test_a_link_to_a_card_stays_a_link(chain, tmp_path):
    (tmp_path / "real.md").write_text("# x\n")
    (tmp_path / "README.md").symlink_to("real.md")
    model_card(chain / "1.safetensors", path=tmp_path / "README.md")
    assert (tmp_path / "README.md").is_symlink() and BEGIN in (tmp_path / "real.md").read_text()


class Half:
    """A file in the middle of whose writing the process is killed."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        os._exit(9)

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_kill_in_the_middle_leaves_the_old_card_whole(moment, tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text(OWN)
    monkeypatch.setattr(page.os, "replace", lambda *_: os._exit(9))
    if moment == "write":
        monkeypatch.setattr(page, "open", lambda *given, **more: Half(open(*given, **more)), raising=False)  # noqa: SIM115
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads: this child does not use them
        child = os.fork()
    if child == 0:
        write_card("x" * 1000, path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_text() == OWN
