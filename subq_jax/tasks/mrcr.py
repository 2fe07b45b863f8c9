"""MRCR-style tasks: which of several answers to the same request, in a long conversation.

A conversation asks for many short texts, each request several times; the answers to one request are near-identical in
form and differ in words. Formats and topics form a grid, so every request has others of its topic and of its format.
A prompt falls short of the length by less than one turn of the conversation.
"""

import dataclasses
import difflib
import functools
import math
import random
import string

from subq_jax.tasks.haystack import Encoder, Haystack, Question, Request, Task, assemble, room_for_context
from subq_jax.tasks.sentences import python_rng, scattered, until_full, write
from subq_jax.tasks.words import WORDS, words

FORMATS = {  # how a text opens, and the lines it goes on with
    "poem": ("O {topic} of {place}, {adjective} and {adjective},", (
        "the {noun} {verb} you {time}, and the {noun} {verb} me,", "{topic} beside a {adjective} {noun},",
        "no {noun} of {place} was ever so {adjective},", "and {name} {adverb} {verb} a {noun} for you.")),
    "short story": ("{name} first saw the {topic} {time}, near {place}.", (
        "Behind the {noun} stood a {adjective} {noun}, and the {topic} {verb} it.",
        "{name} {adverb} {verb} the {noun}.", "\"These {topic} are {adjective},\" said {name} of {place}.",
        "By then the {adjective} {noun} had gone, and {name} {verb} the rest.")),
    "blog post": ("Welcome back! Today: what {name} from {place} {adverb} {verb} about {topic}.", (
        "Tip: keep a {adjective} {noun} near your {topic}.", "Readers in {place} {verb} their {noun} {time}.",
        "My own {topic} {verb} a {noun}, and that was {adjective}.", "Next week {name} writes about the {noun}.")),
    "news article": ("{place}, reported {time}: {topic} {verb} the {adjective} {noun} of {name}.", (
        "A {noun} near {place} was {adverb} closed.", "\"The {topic} were {adjective},\" a {noun} told {name}.",
        "Officials {verb} the {noun} {time}.", "{name} {verb} a {adjective} {noun} for the {topic}.")),
    "riddle": ("We are not {topic}, though {name} of {place} {adverb} {verb} us so.", (
        "We {verb} the {adjective} {noun} but never the {noun}.", "A {noun} knows us {time}.",
        "In {place} we are {adjective}, in {place} we are {adjective}.", "What {topic} {verb}, we {verb} {adverb}.")),
    "letter": ("Dear {name}, {time} the {topic} came to {place} with a {adjective} {noun}.", (
        "I {adverb} {verb} your {noun}.", "Your {adjective} {noun} reached {name}, who {verb} it.",
        "The {topic} ask about the {noun} of {place}.", "Please send a {adjective} {noun} {time}.")),
    "speech": ("Friends of {place}, {name} {verb} these {topic} when no {noun} was {adjective}.", (
        "We {verb} a {noun}; we {verb} a {adjective} {noun}.", "Who {adverb} {verb} the {topic}? {name} did.",
        "Let the {noun} of {place} be {adjective}.", "I thank {name}, whose {noun} {verb} us {time}.")),
    "diary entry": ("Woke in {place}, {time}; the {topic} {verb} my {adjective} {noun}.", (
        "{name} {verb} the {noun} and I {verb} {adverb}.", "The {topic} seemed {adjective} near the {noun}.",
        "Bought a {adjective} {noun} in {place}.", "Must remember what {name} {verb} {time}.")),
}
TOPICS = words(
    "acrobats alligators antelopes apricots armadillos badgers bagpipes balloons bananas barrels beavers beetles "
    "bicycles biscuits blizzards bobcats bumblebees buttons cactuses camels canaries caravans carrots caterpillars "
    "chameleons cherries chestnuts clarinets cobwebs comets corals cranes crickets crocodiles cucumbers dandelions "
    "dolphins donkeys dragonflies dumplings eagles earthquakes eels elephants falcons ferns finches flamingos foxes "
    "gazelles geysers giraffes glaciers goblins gondolas grapes guitars hailstones hamsters hedgehogs hermits herons "
    "icebergs iguanas jackals jellyfish jugglers kangaroos kettles kingfishers lemons leopards lilies lizards "
    "lobsters magnets magpies mammoths marbles marmots meteors moles mosses muffins mushrooms nutmegs octopuses "
    "olives opals orchids ostriches otters oysters pancakes parrots peacocks pelicans penguins pineapples pirates "
    "planets plums puppets pyramids quails rabbits rainbows raisins ravens robots rocks salamanders sandcastles "
    "scarecrows seahorses sparrows spiders squirrels starfish storks submarines sunflowers swallows tadpoles tapirs "
    "teapots telescopes thistles tigers toads tortoises trumpets tulips turnips umbrellas unicorns volcanoes walnuts "
    "walruses waterfalls weasels whales willows windmills zebras")

OPENING = "This is a conversation of a user with an assistant who writes short texts.\n\n"
ASKED, ANSWERED = "User: Write a {format} about {topic}.\n", "Assistant:\n"
QUESTION = ("User: Prepend {prefix} to the {instance} (1 indexed) {format} about {topic}. Do not include any other "
            "text in your response.\n")
PREFIX_LENGTH = 10
ANSWER_TOKENS = 640  # one a byte: the longest text has fewer


def _text(rng: random.Random, kind: str, topic: str) -> str:
    opening, lines = FORMATS[kind]
    chosen = [opening, *(rng.choice(lines) for _ in range(rng.randint(3, 5)))]
    return "\n".join(write(line, rng, topic=topic) for line in chosen)


def _ordinal(number: int) -> str:
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number, 'th') }"


@dataclasses.dataclass
class _Conversation:
    """Random requests and answers; a turn is (request, answer)."""

    rng: random.Random

    def requests(self, least: int) -> list[tuple[str, str]]:
        """At least `least` pairs (format, topic): a grid, as square as there are formats."""
        kinds = self.rng.sample(list(FORMATS), min(len(FORMATS), math.ceil(math.sqrt(least))))
        num_topics = min(math.ceil(least / len(kinds)), len(WORDS["adjective"]) * len(TOPICS))
        numbers = self.rng.sample(range(len(WORDS["adjective"]) * len(TOPICS)), num_topics)
        topics = [f"{WORDS['adjective'][number // len(TOPICS)]} {TOPICS[number % len(TOPICS)]}" for number in numbers]
        return [(kind, topic) for kind in kinds for topic in topics]

    def turn(self, request: tuple[str, str]) -> tuple[str, str]:
        kind, topic = request
        return ASKED.format(format=kind, topic=topic), f"{ANSWERED}{_text(self.rng, kind, topic)}\n\n"


def _build(request: Request, num_needles: int) -> Haystack:
    name = f"mrcr_{num_needles}"
    rng, encoder = python_rng(request, name), Encoder(request.tokenizer)
    conversation = _Conversation(rng)
    sample = [encoder.count(*conversation.turn(asked)) for asked in conversation.requests(4) * 4]
    turns = request.length * len(sample) // sum(sample)
    grid = conversation.requests(max(4, math.ceil(turns / num_needles)))
    rng.shuffle(grid)
    num_asked = max(1, min(request.num_questions, turns // (2 * num_needles), len(grid) // 2))
    needles, others = grid[:num_asked], grid[num_asked:]
    needle_turns = [conversation.turn(needle) for needle in needles for _ in range(num_needles)]
    rng.shuffle(needle_turns)

    questions = [(needle, instance) for needle in needles for instance in range(num_needles)]
    questions = rng.sample(questions, min(request.num_questions, len(questions)))
    prefixes = ["".join(rng.choices(string.ascii_letters + string.digits, k=PREFIX_LENGTH)) for _ in questions]
    texts = [QUESTION.format(prefix=prefix, instance=_ordinal(instance + 1), format=kind, topic=topic)
             for prefix, ((kind, topic), instance) in zip(prefixes, questions, strict=True)]
    longest = max(texts, key=encoder.count)
    room = room_for_context(request, name, encoder, ANSWER_TOKENS, OPENING, longest, ANSWERED,
                            *(piece for turn in needle_turns for piece in turn))
    filling = until_full(lambda: conversation.turn(rng.choice(others)), room, encoder)
    pieces = [OPENING, *(piece for turn in scattered(rng, filling, needle_turns) for piece in turn)]

    def ask(spans):
        for text, prefix, ((kind, topic), instance) in zip(texts, prefixes, questions, strict=True):
            asked = ASKED.format(format=kind, topic=topic)
            places = [place for place, piece in enumerate(pieces) if piece == asked]
            answers = [pieces[place + 1].removeprefix(ANSWERED).rstrip("\n") for place in places]
            evidence = (spans[places[instance] + 1], *(spans[place] for place in places[:instance + 1]))
            wrong = tuple(answer for answer in answers if answer != answers[instance])
            yield Question(text, ANSWERED, (prefix + answers[instance],), evidence, wrong)

    return assemble(request, name, pieces, ask, encoder, ANSWER_TOKENS)


def _ratio(answer: str, question: Question, text: str) -> float:
    """How well what follows the required prefix in `answer`, up to a blank line, matches `text`."""
    prefix = question.outputs[0][:PREFIX_LENGTH]
    if not answer.startswith(prefix):
        return 0.0
    return difflib.SequenceMatcher(None, answer[PREFIX_LENGTH:].split("\n\n")[0].rstrip("\n"), text).ratio()


def score(answer: str, question: Question) -> float:
    """0 without the required prefix, else the ratio of `difflib.SequenceMatcher` for what follows: MRCR's score.

    The answer ends at the first blank line, as the conversation's turns do.
    """
    return _ratio(answer, question, question.outputs[0][PREFIX_LENGTH:])


def wrong_instance_score(answer: str, question: Question) -> float:
    """The best score of `answer` against the other answers to the same request: above `score`, it is one of them."""
    return max((_ratio(answer, question, text) for text in question.wrong), default=0.0)


SOURCE = (
    "OpenAI MRCR (MIT), after Vodrahalli et al. (2024), Michelangelo, arXiv:2409.12640. Differs: the texts are "
    "generated from templates, by no model, and are shorter; several requests of a conversation may be asked about; "
    "no solved example comes first; an answer ends at a blank line. Chance, a random other answer of the conversation "
    "after the right prefix: about 0.07, with 8 needles 0.09; another answer to the same request: about 0.20.")

TASKS = tuple(Task(f"mrcr_{needles}", functools.partial(_build, num_needles=needles), score, ANSWER_TOKENS, SOURCE,
              {"wrong instance": wrong_instance_score}, chance)
              for needles, chance in ((2, 0.07), (4, 0.07), (8, 0.09)))
