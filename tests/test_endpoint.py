"""What a server's log-probs are about: ids where it says them, classes of equal texts where not, nothing where its texts are others."""

import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from agentalign.deployment.endpoint import Answer, Endpoint
from agentalign.records.golden import GoldenTurn
from agentalign.records.trajectory import Message
from agentalign.training.dialect import Dialect
from agentalign.training.top_tokens import apart
from tests.small_answers import JsonHandler

TEMPLATE = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
PIECES = ("<end>", "▁The", "The", "▁cat", "cat", "▁sat", "s")
LIKELY = ({1: 0.90, 2: 0.05, 3: 0.03}, {4: 0.6, 3: 0.3, 2: 0.05}, {5: 0.8, 6: 0.1, 1: 0.05})
TOPS = tuple(tuple((token, math.log(chance)) for token, chance in likely.items()) for likely in LIKELY)


@pytest.fixture(scope="module")
def dialect() -> Dialect:
    """A base whose decoder strips the first space, as SentencePiece's kin do: two ids read "The"."""
    words = Tokenizer(models.BPE({piece: i for i, piece in enumerate(PIECES)}, [], unk_token="<end>"))
    words.decoder = decoders.Metaspace()
    return Dialect(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>"), TEMPLATE)


@pytest.fixture(scope="module")
def turn() -> GoldenTurn:
    user, said = Message(role="user", content="The"), Message(role="assistant", content="Thecat sat")
    return GoldenTurn(task="t", messages=(user,), tools="[]", context=(2, 0), completion=(1, 4, 5), answer=said, adapter=TOPS, base=TOPS)


class Server(JsonHandler, BaseHTTPRequestHandler):
    """Answers with the log-probs that it was given."""

    entries: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "x"},
            "finish_reason": "stop",
            "logprobs": {"content": self.entries},
        }
        self.answer({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def answered(url: str, dialect: Dialect, turn: GoldenTurn, written: Any) -> Answer:
    """Of a server with the very weights of the record; `written` makes an entry of an id."""
    Server.entries = [
        written(token) | {"logprob": top[0][1], "top_logprobs": [written(one) | {"logprob": logprob} for one, logprob in top]}
        for token, top in zip(turn.completion, TOPS, strict=True)
    ]
    return Endpoint(url, api_key="none", max_new_tokens=9, dialect=dialect).ask("m", turn)


@pytest.mark.parametrize(
    "written",
    [
        lambda token: {"token": "no text of the base's", "id": token},
        lambda token: {"token": f"token_id:{token}"},
        lambda token: {"token": PIECES[token].replace("▁", "")},
        lambda token: {"token": PIECES[token].replace("▁", " ")},
    ],
    ids=["id beside the text", "id in place of the text", "texts alone", "texts behind others"],
)
def test_equal_weights_are_no_way_apart_however_tokens_are_told(url: str, dialect: Dialect, turn: GoldenTurn, written: Any) -> None:
    answer = answered(url, dialect, turn, written)
    assert (len(answer.along.tops), answer.foreign) == (3, False)
    assert apart(answer.along.adapter, answer.along.tops) == pytest.approx(0, abs=1e-9)


def test_ids_tell_apart_what_texts_cannot(url: str, dialect: Dialect, turn: GoldenTurn) -> None:
    swapped = {1: 2, 2: 1}
    other = answered(url, dialect, turn, lambda token: {"token": "x", "id": swapped.get(token, token)})
    assert apart(other.along.adapter, other.along.tops) > 1
    assert len(other.along.tops) == 1, "it wrote another token"


def test_texts_that_no_id_has_say_nothing(url: str, dialect: Dialect, turn: GoldenTurn) -> None:
    answer = answered(url, dialect, turn, lambda token: {"token": PIECES[token]})
    assert (answer.along.tops, answer.foreign) == ((), True)


def test_a_token_s_text_has_the_space_that_it_has_behind_others(dialect: Dialect) -> None:
    assert [dialect.token_text(token) for token in (1, 4, 5)] == [" The", "cat", " sat"]
    assert b"".join(map(dialect.token_bytes, (2, 4, 5))) == b"Thecat sat"
