"""Perplexity and divergence of tiny models, against transformers' and torch's own on the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cupola
from cupola.compiler.cli.app import run
from cupola.models.llama import FAMILY
from tests.e2e.texts import text_of
from tests.runtime.tiny_artifact import make_artifact
from tests.runtime.tokenizers_for_tests import byte_level, save

Capture = pytest.CaptureFixture[str]
CONTEXT, VOCAB = 128, 320
TEXT = text_of(4)  # some 400 tokens


@dataclass(frozen=True)
class Tiny:
    """A random model as transformers has it, and as it was compiled; it may begin texts with a BOS token."""

    model: Any
    artifact: str

    def logits(self, ids: list[int]) -> Any:
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].double()


def make(folder: Path, seed: int, *, bos: int | None = None) -> Tiny:
    import torch
    import transformers
    from tokenizers import processors

    torch.manual_seed(seed)
    values = {**FAMILY.tiny, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "bos_token_id": bos}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("llama", **values), dtype=torch.float32).eval()
    with torch.no_grad():
        for value in model.parameters():  # far from uniform, so that mistakes show
            value.mul_(3)
    model.save_pretrained(folder / "model")
    cutter = byte_level()
    if bos is not None:
        cutter.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", bos)])
    save(cutter, folder / "model")
    return Tiny(model, str(cupola.compile(folder / "model", out=folder / "artifact", quant="f32").path))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("tiny"), 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("other"), 1)


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("bos"), 2, bos=byte_level().token_to_id("<end>"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text").write_text(TEXT)
    return str(tmp_path / "text")


def evaluate(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert run(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def side_by_side(tiny: Tiny, ids: list[int], context: int, bos: int | None = None) -> Any:
    """−log p of the second halves of windows side by side, as llama.cpp's perplexity scores them: f64 [tokens]."""
    import torch

    losses = []
    for start in range(0, len(ids) - context + 1, context):
        window = ids[start : start + context]
        if bos is not None:
            window[0] = bos
        losses.append(
            torch.nn.functional.cross_entropy(tiny.logits(window)[:-1], torch.tensor(window[1:]), reduction="none")[context // 2 :]
        )
    return torch.cat(losses)


@pytest.mark.parametrize("context", [64, 37])
def test_windows_side_by_side_score_their_second_halves(tiny: Tiny, text: str, context: int, capsys: Capture) -> None:
    found = evaluate(capsys, tiny.artifact, "--text", text, "--context", str(context))
    expected = side_by_side(tiny, byte_level().encode(TEXT).ids, context)
    assert found["num_tokens"] == len(byte_level().encode(TEXT).ids)
    assert (found["num_windows"], found["num_scored_tokens"]) == (found["num_tokens"] // context, len(expected))
    value = expected.mean().exp().item()
    assert found["perplexity"]["value"] == pytest.approx(value, rel=1e-5)
    assert found["perplexity"]["standard_error"] == pytest.approx(value * expected.std().item() / len(expected) ** 0.5, rel=1e-4)


@pytest.mark.parametrize(("context", "stride"), [(64, 16), (64, 64), (50, 49), (37, 5)])
def test_a_stride_scores_as_transformers_documentation(tiny: Tiny, text: str, context: int, stride: int, capsys: Capture) -> None:
    import torch

    ids = torch.tensor([byte_level().encode(TEXT).ids[:200]])
    Path(text).write_text(byte_level().decode(ids[0].tolist()))
    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):  # https://huggingface.co/docs/transformers/perplexity
        end = min(begin + context, ids.shape[1])
        targets = ids[:, begin:end].clone()
        targets[:, : -(end - previous_end)] = -100
        scored = int((targets[:, 1:] != -100).sum())  # the documentation counts this roughly
        if scored:
            with torch.no_grad():
                total += tiny.model(ids[:, begin:end], labels=targets).loss.item() * scored
        count, previous_end = count + scored, end
        if end == ids.shape[1]:
            break
    found = evaluate(capsys, tiny.artifact, "--text", text, "--context", str(context), "--stride", str(stride))
    assert (found["num_scored_tokens"], found["stride"]) == (count, stride)
    assert found["perplexity"]["value"] == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-5)


def test_every_window_begins_with_the_bos_token_if_the_text_does(with_bos: Tiny, text: str, capsys: Capture) -> None:
    bos = byte_level().token_to_id("<end>")
    found = evaluate(capsys, with_bos.artifact, "--text", text, "--context", "64")
    expected = side_by_side(with_bos, [bos, *byte_level().encode(TEXT).ids], 64, bos)
    assert found["num_tokens"] == 1 + len(byte_level().encode(TEXT).ids)
    assert found["perplexity"]["value"] == pytest.approx(expected.mean().exp().item(), rel=1e-5)


def test_divergence_from_a_reference(tiny: Tiny, other: Tiny, text: str, capsys: Capture) -> None:
    import torch

    found = evaluate(capsys, tiny.artifact, "--text", text, "--context", "64", "--max-windows", "2", "--reference", other.artifact)
    ids = byte_level().encode(TEXT).ids
    rows = [torch.cat([model.logits(ids[i : i + 64])[32:63] for i in (0, 64)]).log_softmax(-1) for model in (tiny, other)]
    comparison = found["comparison"]
    divergence = torch.nn.functional.kl_div(rows[0], rows[1], log_target=True, reduction="batchmean").item()
    assert comparison["kl_divergence"]["value"] == pytest.approx(divergence, rel=1e-4)
    assert comparison["same_top"]["value"] == pytest.approx((rows[0].argmax(-1) == rows[1].argmax(-1)).double().mean().item())
    losses = [side_by_side(model, ids[:128], 64) for model in (tiny, other)]
    assert comparison["perplexity"]["value"] == pytest.approx(losses[1].mean().exp().item(), rel=1e-5)
    difference = losses[0] - losses[1]
    ratio = difference.mean().exp().item()
    assert comparison["perplexity_ratio"]["value"] == pytest.approx(ratio, rel=1e-5)
    assert comparison["perplexity_ratio"]["standard_error"] == pytest.approx(ratio * difference.std().item() / 62**0.5, rel=1e-4)


def test_a_model_does_not_diverge_from_itself(tiny: Tiny, text: str, capsys: Capture) -> None:
    comparison = evaluate(capsys, tiny.artifact, "--text", text, "--reference", tiny.artifact)["comparison"]
    assert comparison["kl_divergence"] == {"value": 0, "standard_error": 0}
    assert comparison["perplexity_ratio"] == {"value": 1, "standard_error": 0}
    assert comparison["same_top"]["value"] == 1


def test_people_get_a_table(tiny: Tiny, text: str, capsys: Capture) -> None:
    assert run(["eval", tiny.artifact, "--text", text, "--reference", tiny.artifact]) == 0
    shown = capsys.readouterr()
    assert [line.split("  ")[0] for line in shown.out.splitlines()] == [
        "perplexity", "tokens", "reference", "ratio", "KL divergence", "same top",
    ]  # fmt: skip
    assert "3 windows of 128, second halves scored" in shown.out
    assert "cupola: Scoring " in shown.err


def test_bad_input_is_one_line_and_code_2(tiny: Tiny, with_bos: Tiny, text: str, tmp_path: Path, capsys: Capture) -> None:
    short, empty, latin = (tmp_path / name for name in ("short", "empty", "latin"))
    short.write_text("It is short.")
    empty.write_text(" \n")
    latin.write_bytes(b"caf\xe9")
    blind = make_artifact(tmp_path / "blind", with_tokenizer=False).path
    narrower = make_artifact(tmp_path / "narrower").path
    for arguments, expected in [
        ([tiny.artifact, "--text", str(short)], "text: has 12 tokens, and a window needs 128"),
        ([tiny.artifact, "--text", str(empty)], "empty: text: is empty"),
        ([tiny.artifact, "--text", str(latin)], "latin: text: is not UTF-8 at byte 3"),
        ([tiny.artifact, "--text", str(tmp_path / "none")], "none: text: can't be read: No such file"),
        ([tiny.artifact, "--text", str(tmp_path)], "text: can't be read: Is a directory"),
        ([tiny.artifact], "--text"),
        ([tiny.artifact, "--text", text, "--context", "129"], "context: is 129, not from 4 to 128"),
        ([tiny.artifact, "--text", text, "--context", "3"], "context: is 3, not from 4"),
        ([tiny.artifact, "--text", text, "--stride", "0"], "stride: is 0, not from 1 to 128"),
        ([tiny.artifact, "--text", text, "--context", "64", "--stride", "65"], "stride: is 65, not from 1 to 64"),
        ([tiny.artifact, "--text", text, "--max-windows", "0"], "max-windows: is 0"),
        ([str(blind), "--text", text], "blind: has no tokenizer"),
        ([tiny.artifact, "--text", text, "--reference", str(narrower)], "reference: the vocabularies have 320 and 264 tokens"),
        ([tiny.artifact, "--text", text, "--reference", with_bos.artifact], "reference: its tokenizer cuts the text differently"),
        ([tiny.artifact, "--text", text, "--quant", "bf16"], "is compiled already"),
    ]:  # fmt: skip
        assert run(["eval", *arguments]) == 2, arguments
        shown = capsys.readouterr()
        [line] = shown.err.splitlines()
        assert line.startswith("error: ") and expected in line, arguments
        assert shown.out == ""
