"""EleutherAI's lm-evaluation-harness asks a model that we trained; needs `pip install "subq_jax[harness]"`.

The harness brings tasks, few-shot examples and metrics; this module answers its three kinds of request with a `Reader`.
Every text begins with the beginning-of-document token, as documents do in training, and is encoded whole.
"""

import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from subq_jax.checks import check_integer
from subq_jax.data.tokenizers import Tokenizer
from subq_jax.inference.reader import Reader

ANSWER_TOKENS = 256  # where a task names no `max_gen_toks`; what the harness's own models take
TOKENS_BETWEEN_STOPS = 64  # decoded before the text is searched for a stop sequence
# Settings of generation that greedy decoding obeys, or that change nothing in it.
GREEDY = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}

logger = logging.getLogger(__name__)


class HarnessModel(TemplateLM):
    """A model as the harness calls it: `lm_eval.simple_evaluate(model=HarnessModel(reader, tokenizer), ...)`.

    One request after another, without batches; what shares a context with the request before it shares its reading.

    Args:
      reader: reads and continues with the model.
      tokenizer: the one that the model was trained with.
      max_length: tokens that the model may read for one request, the first included; None for as many as come.

    Raises:
      ValueError: for a `max_length` below 2.
    """

    def __init__(self, reader: Reader, tokenizer: Tokenizer, max_length: int | None = None):
        super().__init__()
        if max_length is not None:
            check_integer("max_length", max_length, 2)
        self._reader, self._tokenizer, self.max_length = reader, tokenizer, max_length

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """The tokens of a text, after the beginning-of-document token unless `add_special_tokens` is False."""
        begin = [] if add_special_tokens is False else [self.prefix_token_id]
        return [*begin, *self._tokenizer.encode(string).tolist()]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of each context, up to the end-of-document token, the first stop sequence of `until`
        (left out) or `max_gen_toks`. A context too long for `max_length` loses its beginning, and a warning says so.

        Raises:
          ValueError: for sampling, settings that have no meaning here, or no room for an answer in `max_length`.
        """
        answers, shortened = [], 0
        for context, settings in tqdm([request.args for request in requests], "generating", disable=disable_tqdm):
            until, num_tokens = greedy_settings(settings)
            whole = self.tok_encode(context)
            tokens = self._fitted(whole, num_tokens)
            shortened += len(tokens) < len(whole)
            answers.append(self._generate(tokens, until, num_tokens))
            self.cache_hook.add_partial("generate_until", (context, settings), answers[-1])
        self._warn(shortened, len(requests))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text after the beginning of a document, without its end.

        A text beyond `max_length` is read in windows as the harness defines them.
        """
        found = []
        for (text,) in tqdm([request.args for request in requests], "scoring", disable=disable_tqdm):
            tokens = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length or len(tokens) or 1, 1)
            pairs = [make_disjoint_window(window) for window in windows]
            found.append(sum(self._score(context, [following])[0][0] for context, following in pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def _loglikelihood_tokens(self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
                              disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """The log-probability of each continuation, and whether it is the greedy one.

        Raises:
          ValueError: for a continuation that leaves no token, or none but itself in `max_length`.
        """
        fitted, shortened = [], 0
        for texts, context, following in requests:
            if not following:
                raise ValueError(f"the continuation {texts[1]!r} must add a token to its context, and adds none")
            fitted.append((texts, self._fitted(context, len(following) - 1), following))
            shortened += len(fitted[-1][1]) < len(context)
        self._warn(shortened, len(requests))
        found = []
        with tqdm(total=len(fitted), desc="scoring", disable=disable_tqdm) as progress:
            for context, group in itertools.groupby(fitted, key=lambda request: request[1]):
                group = list(group)
                scored = self._score(context, [following for *_, following in group])
                for (texts, *_), score in zip(group, scored, strict=True):
                    self.cache_hook.add_partial("loglikelihood", texts, score)
                found += scored
                progress.update(len(group))
        return found

    def _score(self, context: list[int], continuations: Iterable[list[int]]) -> list[tuple[float, bool]]:
        """Log-probability and greediness of each continuation of a context, which is read once."""
        continuations = [np.asarray(following, np.int32) for following in continuations]
        read = self._read(context, max(map(len, continuations)))
        scored = (self._reader.log_probabilities(read, np.zeros(0, np.int32), answer) for answer in continuations)
        return [(float(likely.sum(dtype=np.float64)), bool(agrees.all())) for likely, agrees in scored]

    def _generate(self, context: list[int], until: Sequence[str], num_tokens: int) -> str:
        read = self._read(context, num_tokens)
        said, text, ended = np.zeros(0, np.int32), "", False
        step = TOKENS_BETWEEN_STOPS if until else num_tokens
        while len(said) < num_tokens and not ended:
            new = self._reader.greedy(read, said, min(step, num_tokens - len(said)), self.eot_token_id)
            said = np.concatenate([said, new.tokens])
            ended = said[-1] == self.eot_token_id
            text = self._tokenizer.decode(said[:-1] if ended else said)
            places = [place for stop in until if (place := text.find(stop)) >= 0]
            if places:
                return text[: min(places)]
        return text

    def _read(self, context: list[int], more: int):
        """The context read into caches with room for `more` tokens."""
        return self._reader.read(np.asarray(context, np.int32), len(context) + more)

    def _fitted(self, context: list[int], more: int) -> list[int]:
        """The context's first token and as many of its last as `max_length` has room for beside `more` tokens."""
        if self.max_length is None or len(context) + more <= self.max_length:
            return context
        if (room := self.max_length - more) < 1:
            raise ValueError(f"max_length must be above {more} for what follows the context, got {self.max_length}")
        return [context[0], *context[len(context) - room + 1:]]

    def _warn(self, shortened: int, total: int) -> None:
        if shortened:
            logger.warning("%d of %d contexts were longer than max_length=%d allows and lost their beginning",
                           shortened, total, self.max_length)


def greedy_settings(settings: dict[str, Any]) -> tuple[list[str], int]:
    """The stop sequences and the most tokens of a request's settings.

    Raises:
      ValueError: for sampling, and for settings that greedy decoding does not know.
    """
    settings = normalize_gen_kwargs(settings, ANSWER_TOKENS)
    if unknown := sorted(set(settings) - GREEDY):
        raise ValueError(f"settings of generation must be among {sorted(GREEDY)}, got {unknown}")
    if settings["do_sample"]:
        raise ValueError(f"do_sample must be False: decoding is greedy, got temperature={settings['temperature']}")
    check_integer("max_gen_toks", settings["max_gen_toks"])
    return [stop for stop in settings["until"] if stop], settings["max_gen_toks"]
