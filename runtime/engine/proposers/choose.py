"""The proposers by their names."""

from __future__ import annotations

from collections.abc import Callable

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.device.executor import open_library
from cupola.runtime.device.threads import DEFAULT_THREADS, ThreadOptions
from cupola.runtime.engine.proposers.draft_model import CHUNK, DraftModelProposer
from cupola.runtime.engine.proposers.early_exit import EarlyExitProposer
from cupola.runtime.engine.proposers.function import FunctionProposer
from cupola.runtime.engine.proposers.lookahead import LookaheadProposer
from cupola.runtime.engine.proposers.ngram import NGramProposer
from cupola.runtime.engine.proposers.proposer import Proposer
from cupola.runtime.engine.proposers.several import SeveralProposers
from cupola.runtime.engine.proposers.suffix import SuffixProposer
from cupola.runtime.engine.speculative import DRAFT, EARLY_EXIT, FIELD, Speculative, check_speculative, num_layers
from cupola.runtime.errors import OptionError
from cupola.runtime.text.tokenizer import Tokenizer, load_tokenizer

BY_NAME: dict[str, Callable[[], Proposer]] = {
    "ngram": NGramProposer,
    "suffix": SuffixProposer,
    "lookahead": LookaheadProposer,
    "auto": lambda: SeveralProposers(NGramProposer(), SuffixProposer()),
}


def make_proposer(
    speculative: Speculative,
    target: Artifact,
    tokenizer: Tokenizer | None,
    num_tokens: int,
    max_num_seqs: int,
    threads: ThreadOptions = DEFAULT_THREADS,
) -> Proposer | None:
    """The proposer of that name, or one that asks a function.

    Args:
        target: the model that it drafts for.
        tokenizer: of that model.
        num_tokens: whose K/V a small model may keep.
        max_num_seqs: sequences that it may be asked about at once.
        threads: of a small model's kernels.

    Raises:
        OptionError: there is no such name, or the small model is of another vocabulary, or can't draft.
        ArtifactError: the small model's artifact is damaged or for another machine.
    """
    check_speculative(speculative)
    if speculative is None:
        return None
    if not isinstance(speculative, str):
        return FunctionProposer(speculative)
    if speculative.startswith(DRAFT):
        return _open_draft_model(speculative.removeprefix(DRAFT), target, tokenizer, num_tokens, max_num_seqs, threads)
    if speculative.startswith(EARLY_EXIT):
        return EarlyExitProposer(num_layers(speculative))
    return BY_NAME[speculative]()


def _open_draft_model(
    path: str, target: Artifact, tokenizer: Tokenizer | None, num_tokens: int, max_num_seqs: int, threads: ThreadOptions
) -> DraftModelProposer:
    draft = Artifact.open(path)
    manifest = draft.manifest
    other = load_tokenizer(draft)
    vocabularies = [None if one is None else one.vocabulary() for one in (tokenizer, other)]
    sizes = manifest.model.vocab_size, target.manifest.model.vocab_size
    alike = sizes[0] <= sizes[1] if manifest.model.draft_only else sizes[0] == sizes[1]
    is_same = vocabularies[0] == vocabularies[1] if all(vocabularies) else alike
    if not is_same:
        raise OptionError(
            "has another vocabulary than the model that it is to draft for", file=path, field=FIELD, fix="give a relative of it"
        )
    if manifest.kv.recurrent is not None:
        raise OptionError("carries a state from token to token, which can't go back", file=path, field=FIELD, fix="give another model")
    opened = open_library(draft)
    if not opened.device.shares_memory:
        raise OptionError("was compiled for a device with memory of its own", file=path, field=FIELD, fix="compile it for the CPU")
    kv = manifest.kv
    needed = kv.most_blocks(manifest.model.context_length, CHUNK)
    limit = -(-num_tokens // kv.block_size) + max_num_seqs
    num_blocks = tuple(min(limit, max_num_seqs * count) for count in needed)
    if manifest.limits.max_batch_size < max_num_seqs:
        problem = f"takes {manifest.limits.max_batch_size} sequences at once, and {max_num_seqs} may come"
        raise OptionError(problem, file=path, field=FIELD, fix="compile it with a larger --max-batch, or give a smaller max_num_seqs")
    proposer = DraftModelProposer(opened.executor(num_blocks, threads=threads), manifest.model, kv, sizes[1])
    proposer.warm_up()
    return proposer
