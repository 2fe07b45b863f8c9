"""Generated contracts, in which every fact stands in a numbered section among boilerplate.

Contracts have 50 to 200 pages where the length allows, else two share it. Each names its parties at every article.
Its sections stand in random order: for every service one clause each on notice, cure, fee and law, an exception that
refers to the notice or cure clause by number alone, and pairs of definitions, one of which refers to the other.
The rest is boilerplate, in sections of its own and around every clause.
"""

import dataclasses
import random
from collections.abc import Iterator

from subq_jax.tasks.haystack import Encoder
from subq_jax.tasks.sentences import scattered, write
from subq_jax.tasks.words import words

COMPANIES = tuple(f"{first} {second} {form}" for first in words(
    "Alder Apex Arden Bramble Brook Cobalt Crescent Delta Dorset Eastgate Ember Falcon Fairway Garnet Granite "
    "Halcyon Harbor Indigo Ironwood Juniper Keystone Lakeside Larch Marlin Meridian Nimbus Northway Oakridge Onyx "
    "Orchard Pebble Pioneer Quarry Quill Redwood Ridge Sable Sterling Summit Tamar") for second in words(
    "Analytics Brands Capital Chemicals Dairies Energy Foods Freight Furniture Glass Holdings Instruments Labs "
    "Logistics Media Motors Optics Paper Shipping Textiles") for form in ("Ltd", "LLC", "Inc"))
SERVICES = words(
    "Accounting|Archive|Catering|Cleaning|Courier|Customs|Data Hosting|Design|Fleet|Forwarding|Help Desk|Inspection|"
    "Insurance|Laboratory|Landscaping|Laundry|Maintenance|Marketing|Packaging|Payroll|Printing|Procurement|"
    "Recruitment|Recycling|Security|Storage|Survey|Training|Translation|Warehouse", "|")
STATES = words(
    "Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida|Georgia|Hawaii|Idaho|Illinois|"
    "Indiana|Iowa|Kansas|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi|Missouri|"
    "Montana|Nebraska|Nevada|New Hampshire|New Jersey|New Mexico|New York|North Carolina|North Dakota|Ohio|Oklahoma|"
    "Oregon|Pennsylvania|Rhode Island|South Carolina|South Dakota|Tennessee|Texas|Utah|Vermont|Virginia|Washington|"
    "West Virginia|Wisconsin|Wyoming", "|")
TERMS = tuple(f"{first} {second}" for first in words(
    "Adjusted Annual Base Closing Completion Deferred Exit Final Initial Interim Minimum Monthly Net Opening "
    "Quarterly Renewal Reserve Standard Transition") for second in words("Amount Charge Cost Deposit Fee Rate Sum"))
CLAUSES = {
    "notice": "Either party may terminate the {service} Services for convenience by {value} days' written notice.",
    "cure": "Either party may terminate the {service} Services for a breach not cured within {value} days of notice.",
    "fee": "On early termination of the {service} Services, Customer shall pay Provider a fee of {value}.",
    "law": "Any dispute about the termination of the {service} Services is governed by the laws of {value}.",
}
EXCEPTION = "Notwithstanding Section {section}, {condition} the period stated there is {value} days."
CONDITIONS = (
    "where Customer is a public body", "during the first year of the Term", "after a change of control of Provider",
    "where the Services are suspended", "for orders below the Threshold", "while an audit is in progress")
ALIAS = "\"{term}\" has the meaning given to \"{other}\" in Section {section}."
DEFINITION = "\"{term}\" means {value}."
BOILERPLATE = (
    "The {adjective} {noun} of Provider shall be kept as {time} agreed with {name} of {place}.",
    "Nothing in Section {section} limits the liability of a party for its {noun}, {noun} or {noun}.",
    "Subject to Section {section}, Customer shall {adverb} maintain the {adjective} {noun} at {place}.",
    "Provider shall deliver each {adjective} {noun} to the {place} site with the {noun} listed in Schedule {schedule}.",
    "Notwithstanding Section {section}, neither party is liable for a {adjective} {noun} beyond its control.",
    "Each party shall keep the {noun} of the other in a {adjective} {noun} and return it on request to {place}.",
    "The parties {verb} the {adjective} {noun} described in Schedule {schedule}, as {name} confirmed {time}.",
    "For the purposes of Section {section}, a {noun} received at {place} {time} is a {adjective} {noun}.",
    "No waiver of a {noun} under Section {section} is a waiver of any {adjective} {noun} that follows.",
    "Customer may audit the {noun} and the {adjective} {noun} of Provider at {place} once in each quarter.",
)
HEADINGS = ("General", "Records", "Assignment", "Audit", "Confidentiality", "Deliveries", "Force Majeure", "Liability",
            "Notices", "Premises", "Standards", "Subcontractors", "Taxes", "Warranties")
EXCEPTIONS = 5  # of a condition in a contract; all if there are fewer than twice as many
PAGE = 3000  # characters
SENTENCES = 4  # of boilerplate, in the mean section


@dataclasses.dataclass
class Section:
    """A numbered section; `fact` is its one sentence that is not boilerplate, `value` what it states."""

    heading: str
    kind: str = ""
    subject: str = ""  # the service or the term
    value: str = ""
    refers: "Section | None" = None
    detail: str = ""  # the condition of an exception, the other term of an alias
    number: str = ""
    fact: str = ""
    boilerplate: list[str] = dataclasses.field(default_factory=list)
    places: tuple[int, ...] = ()  # of the pieces that hold the fact, its heading and the article's


@dataclasses.dataclass
class Contract:
    """A provider, a customer, and the sections of each article."""

    parties: tuple[str, str]
    articles: list[list[Section]]

    @property
    def sections(self) -> list[Section]:
        return [section for article in self.articles for section in article]

    @property
    def name(self) -> str:
        return "the agreement between {} and {}".format(*self.parties)

    def title(self) -> str:
        """The line that the contract begins with."""
        return "AGREEMENT between {} (\"Provider\") and {} (\"Customer\")\n\n".format(*self.parties)

    def article(self, number: int) -> str:
        """The line that an article begins with, counted from 1."""
        return "ARTICLE {} ({} and {})\n\n".format(number, *self.parties)


def _facts(rng: random.Random, num_services: int) -> list[Section]:
    """The sections of a contract that hold facts: five for each service, and as many pairs of definitions."""
    days = [str(number) for number in rng.sample(range(10, 100), 3 * num_services)]
    fees, charges = ([f"${number},{hundreds}00" for number, hundreds in
                      (divmod(value, 10) for value in rng.sample(range(100, 1000), num_services))] for _ in range(2))
    laws, terms = rng.sample(STATES, num_services), rng.sample(TERMS, 2 * num_services)
    # Several exceptions share a condition: what it says does not tell which clause it is an exception to.
    conditions = rng.sample(CONDITIONS, max(1, num_services // EXCEPTIONS))
    facts = []
    for at, service in enumerate(rng.sample(SERVICES, num_services)):
        values = {"notice": days[3 * at], "cure": days[3 * at + 1], "fee": fees[at], "law": laws[at]}
        clauses = {kind: Section("Termination", kind, service, value) for kind, value in values.items()}
        general = clauses[rng.choice(("notice", "cure"))]
        exception = Section("Special cases", "exception", service, days[3 * at + 2], general,
                             conditions[at % len(conditions)])
        definition = Section("Definitions", "definition", terms[2 * at + 1], charges[at])
        alias = Section("Definitions", "alias", terms[2 * at], charges[at], definition, terms[2 * at + 1])
        facts += [*clauses.values(), exception, definition, alias]
    return facts


def _state(section: Section) -> str:
    """The sentence of a fact."""
    number = section.refers.number if section.refers else ""
    if section.kind == "exception":
        return EXCEPTION.format(section=number, condition=section.detail, value=section.value)
    if section.kind == "alias":
        return ALIAS.format(term=section.subject, other=section.detail, section=number)
    if section.kind == "definition":
        return DEFINITION.format(term=section.subject, value=section.value)
    return CLAUSES[section.kind].format(service=section.subject, value=section.value)


def _contract(rng: random.Random, parties: tuple[str, str], num_sections: int) -> Contract:
    facts = _facts(rng, min(len(SERVICES), max(2, num_sections // 20)))
    plain = [Section(rng.choice(HEADINGS)) for _ in range(num_sections - len(facts))]
    rng.shuffle(facts)
    sections, articles = scattered(rng, plain, facts), []
    while sections:
        size = rng.randint(6, 14)
        articles.append(sections[:size])
        sections = sections[size:]
    for article, members in enumerate(articles, 1):
        for at, section in enumerate(members, 1):
            section.number = f"{article}.{at}"
    for fact in facts:
        fact.fact = _state(fact) + " "
    return Contract(parties, articles)


def _boilerplate(rng: random.Random, sections: list[Section]) -> str:
    section, schedule = rng.choice(sections).number, str(rng.randint(1, 9))
    return write(rng.choice(BOILERPLATE), rng, section=section, schedule=schedule) + " "


def draw_contracts(rng: random.Random, room: int, encoder: Encoder) -> list[Contract]:
    """The contracts of a context of `room` tokens, at least two, without their boilerplate."""
    sample = [_boilerplate(rng, [Section("", number="10.10")]) for _ in range(20)]
    sentence = encoder.count(*sample) / len(sample)
    page = sentence * PAGE * len(sample) / sum(map(len, sample))
    sizes = []
    while sum(sizes) < room and 2 * len(sizes) < len(COMPANIES):
        sizes.append(rng.uniform(50, 200) * page)
    if len(sizes) < 2:
        sizes = [1, 1]
    section = encoder.count("Section 10.10 Definitions. ") + SENTENCES * sentence
    parties = rng.sample(COMPANIES, 2 * len(sizes))
    return [_contract(rng, (parties[2 * at], parties[2 * at + 1]), max(14, int(room * size / sum(sizes) / section)))
            for at, size in enumerate(sizes)]


def _heading(section: Section) -> str:
    return f"Section {section.number} {section.heading}. "


def fixed_texts(contracts: list[Contract]) -> Iterator[str]:
    """All that stands in the contracts but boilerplate."""
    for contract in contracts:
        yield contract.title()
        for number, article in enumerate(contract.articles, 1):
            yield contract.article(number)
            for section in article:
                yield from (_heading(section), *([section.fact] if section.fact else []), "\n\n")


def add_boilerplate(rng: random.Random, contracts: list[Contract], room: int, encoder: Encoder) -> None:
    """Adds sentences at random until the next has no place in `room` tokens; each section gets one first."""
    places = [(section, contract.sections) for contract in contracts for section in contract.sections]
    rng.shuffle(places)
    for count in range(room):  # a sentence takes a token at least
        section, of_contract = places[count] if count < len(places) else rng.choice(places)
        text = _boilerplate(rng, of_contract)
        room -= encoder.count(text)
        if room < 0:
            return
        section.boilerplate.append(text)


def pieces_of(rng: random.Random, contracts: list[Contract]) -> list[str]:
    """The text of the contracts; sets the `places` of every section with a fact."""
    pieces = []
    for contract in contracts:
        pieces.append(contract.title())
        for number, article in enumerate(contract.articles, 1):
            of_article = len(pieces)
            pieces.append(contract.article(number))
            for section in article:
                of_section = len(pieces)
                sentences = scattered(rng, section.boilerplate, [section.fact] if section.fact else [])
                pieces += [_heading(section), *sentences, "\n\n"]
                if section.fact:
                    section.places = (of_section + 1 + sentences.index(section.fact), of_section, of_article)
    return pieces
