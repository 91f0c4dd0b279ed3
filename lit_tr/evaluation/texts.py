"""What sampled responses look like as texts: how much they repeat themselves, and one another.

All figures depend on what is taken for a token, and so compare only what was split in the same way: `words` for texts
of several policies, or the token ids of one tokenizer.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean

from lit_tr.errors import UserError

Tokens = Sequence[Hashable]

SELF_BLEU_TEXTS = 50
"""Most texts that self-BLEU compares: its time grows with their square, and 100 of 100 words took 4.8 s of a core."""


def words(text: str) -> list[str]:
    """Return the words and the punctuation marks of a text, in lower case.

    Examples:
        >>> words("The river is icy. It's cold!")
        ['the', 'river', 'is', 'icy', '.', 'it', "'", 's', 'cold', '!']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


def repetition(tokens: Tokens, n: int = 3) -> float:
    """Return the share of the n-grams of a response that it has said before: `1 - different / all`; 0 if it has none.

    It is the seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319, Eq. 8), with trigrams in the place of 4-grams, for
    short responses.

    Examples:
        >>> repetition("a b c a b c".split())  # abc bca cab abc
        0.25
    """
    found = _ngrams(tokens, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def distinct(responses: Iterable[Tokens], n: int) -> float:
    """Return the share of different n-grams among those of all responses together: distinct-n; 0 if there are none.

    Li et al. 2016 (arXiv 1510.03055, Sec. 5). It falls with the number of responses and their length, so it compares
    policies on as many responses of about the same length.

    Examples:
        >>> distinct([["a", "b", "a"], ["a", "b"]], n=2)  # ab ba, ab
        0.6666666666666666
    """
    counts = Counter(ngram for tokens in responses for ngram in _ngrams(tokens, n))
    return len(counts) / counts.total() if counts else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text against all others, in [0, 1]: 1 where all are the same.

    Zhu et al. 2018 (Texygen, arXiv 1802.01886), by sacrebleu: BLEU-4 of a sentence with its own effective order,
    exponential smoothing and the 13a tokenizer. Of more than 50 texts 50 are taken, evenly spaced.

    Args:
        texts: at least two.

    Raises:
        UserError: sacrebleu is not installed, or there are fewer than two texts.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError as error:
        raise UserError("self-BLEU needs sacrebleu: pip install 'lit-tr[evaluation]'") from error
    if len(texts) < 2:
        raise UserError(f"self-BLEU compares texts with one another, and there is {len(texts)}")
    step = max(len(texts) / SELF_BLEU_TEXTS, 1)
    taken = [texts[int(i * step)] for i in range(min(len(texts), SELF_BLEU_TEXTS))]
    bleu = BLEU(effective_order=True)
    others = (taken[:i] + taken[i + 1 :] for i in range(len(taken)))
    return fmean(bleu.sentence_score(text, rest).score / 100 for text, rest in zip(taken, others, strict=True))


def _ngrams(tokens: Tokens, n: int) -> list[tuple[Hashable, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))
