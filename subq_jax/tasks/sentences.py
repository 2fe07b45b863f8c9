"""Generated English for fillings: templates whose slots take random words, so that no two places read the same."""

import random
import re
from collections.abc import Callable

from subq_jax.tasks.haystack import Encoder, Request


def words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """A list written as one text."""
    return tuple(text.split(separator))


WORDS = {
    "adjective": words(
        "amber ancient bitter blind bold brave brisk broad calm careful clever cold curious damp dark dear deep "
        "distant dusty eager early empty even faint fair false famous fine firm free fresh gentle glad golden grand "
        "grave great green grey hidden hollow honest humble idle kind large late lazy light little lonely long loud "
        "lucky mild modest narrow new noble old open pale patient plain polite proud quick quiet rare rough sad "
        "sharp short silent silver simple slow small soft solemn steady strange strong sudden sunny sweet tall thin "
        "tired vast warm weary wet wide wild wise worn young"),
    "noun": words(
        "anchor apple attic baker barn basket beacon bell blanket boat book bottle bridge brook broom bucket cabin "
        "candle canvas carpenter castle cellar chair chapel chest chimney clock cloud coat coin compass cook corner "
        "cottage cradle crown cup curtain desk door drum engine farmer feather fence ferry field fiddle fire flag "
        "flute forest fountain garden gate ghost glove guest hammer harbor hat hill horse inn island jar key kitchen "
        "kite ladder lamp lantern letter lighthouse map market meadow mill mirror monk moon mountain needle oven owl "
        "painter palace path pencil pilot pond postman quilt river road roof rope sailor school shadow shepherd ship "
        "shoe shop singer spoon stable star stone storm stove street tailor teacher tower train tree valley village "
        "violin wagon wall well wheel whistle window winter wolf"),
    "verb": words(
        "answered borrowed bought broke built buried called carried caught chased cleaned copied counted covered "
        "crossed described drew drove dropped earned emptied fed followed forgot found guarded heard held hid joined "
        "kept kissed knew left lifted lit lost loved made measured mended met missed moved named noticed opened "
        "owned painted passed praised promised pulled pushed reached read remembered repaired saved sent shared "
        "sheltered showed sold stole studied taught thanked took touched traded trusted turned visited warned washed "
        "watched weighed welcomed wrote"),
    "adverb": words(
        "again almost alone always badly barely carefully easily finally gladly hardly kindly lately loudly mostly "
        "nearly neatly never often once perhaps plainly proudly quickly quietly rarely sadly safely secretly seldom "
        "slowly softly somehow soon still suddenly together twice warmly wisely"),
    "name": words(
        "Abel Ada Agnes Albert Alma Amos Anton Arthur Beatrice Bela Bruno Carla Cecil Clara Conrad Cora Cyril Dora "
        "Edgar Edith Elias Ella Emil Enid Ernest Esther Felix Flora Frida Georg Gerda Greta Gustav Hanna Harold "
        "Hazel Hector Hilda Hugo Ida Igor Irene Iris Ivan Jasper Jonas Julia Karl Klara Lena Leo Linus Lotte Louis "
        "Mabel Magda Marcus Martha Max Mina Moses Nadia Nils Nora Oscar Otto Paula Pavel Petra Quentin Rosa Ruben "
        "Ruth Selma Simon Sonia Stella Sven Thea Theo Tilda Tobias Ulrich Ursula Vera Victor Viola Walter Wanda "
        "Xenia Yusuf Zara Zelda"),
    "place": words(
        "Alderby Ashwick Barrow Bexley Birchfield Blakemoor Brindle Calder Carrick Copley Dunmore Eastham Elmstead "
        "Fairlea Farley Glenford Greycliff Harrowgate Hartwell Holmby Inverlea Kelby Kingsmere Lakeholt Langdale "
        "Larkhill Marlow Merton Milden Moorend Netherby Norwell Oakley Ostley Penrose Quarley Redmoor Rowan Saltby "
        "Selwick Stanmore Thornley Tilbrook Underhill Wexcombe Whitby Wickford Yarrow"),
    "time": words(
        "at dawn|at dusk|at midnight|at noon|before breakfast|in April|in August|in autumn|in December|in February|"
        "in January|in July|in June|in March|in May|in November|in October|in September|in spring|in summer|"
        "in the rain|in winter|last night|on Friday|on Monday|on Saturday|on Sunday|on Thursday|on Tuesday|"
        "on Wednesday|that evening|that morning|this week|yesterday", "|"),
}
SENTENCES = (
    "{name} {verb} the {adjective} {noun} {time}.", "The {adjective} {noun} of {place} {adverb} {verb} a {noun}.",
    "Nobody in {place} {adverb} {verb} the {noun}.", "{name} and {name} {verb} a {adjective} {noun} near {place}.",
    "A {noun} and a {adjective} {noun} stood by the {noun} {time}.", "They {verb} the {noun} {adverb}, said {name}.",
    "The road to {place} passed a {adjective} {noun} and a {noun}.", "Every {noun} in {place} was {adjective} {time}.",
    "{name} {adverb} {verb} what the {noun} of {place} {verb}.", "It was {name} who {verb} the {noun} {time}.",
    "Some say that the {noun} {verb} the {adjective} {noun}.", "Between {place} and {place}, {name} {verb} a {noun}.",
)
SLOT, A_BEFORE_VOWEL = re.compile(r"{(\w+)}"), re.compile(r"\b([Aa]) (?=[aeiou])")


def python_rng(request: Request, task: str) -> random.Random:
    """`request.rng` as Python's generator, which is much faster where one word is drawn at a time."""
    return random.Random(int(request.rng(task).integers(2**63)))


def write(template: str, rng: random.Random, **given: str) -> str:
    """`template` with every slot replaced by what is `given` for it or by a random one of its `WORDS`."""
    text = SLOT.sub(lambda slot: given.get(slot[1]) or rng.choice(WORDS[slot[1]]), template)
    return A_BEFORE_VOWEL.sub(r"\1n ", text)


def sentence(rng: random.Random) -> str:
    """A sentence about nothing."""
    return write(rng.choice(SENTENCES), rng)


def until_full(make: Callable[[], tuple[str, ...]], room: int, encoder: Encoder) -> list[tuple[str, ...]]:
    """Groups of pieces that `make` gives, until one has no place in `room` tokens; that one is dropped."""
    groups = []
    while True:
        group = make()
        room -= max(1, encoder.count(*group))
        if room < 0:
            return groups
        groups.append(group)


def scattered(rng: random.Random, filling: list, facts: list) -> list:
    """`facts`, in their order, at random places among `filling`."""
    total = len(filling) + len(facts)
    places = set(rng.sample(range(total), len(facts)))
    filling, facts = iter(filling), iter(facts)
    return [next(facts if place in places else filling) for place in range(total)]
