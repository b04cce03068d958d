"""The families of invented facts: their grammars and phrasings (data only; `synthetic` makes facts of them)."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

Grammar: TypeAlias = tuple[tuple[str, ...], ...]
"""One choice from each part, concatenated; the parts are such that no two choices spell the same text."""


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of invented fact.

    Attributes:
        name: key in `FAMILIES`.
        relation: what is asked of the subject.
        subjects: grammar of the subject.
        answers: grammar of the answer, drawn uniformly.
        questions: taught phrasings holding "{subject}", at least 8.
        unseen_questions: 2 phrasings that are never taught.
    """

    name: str
    relation: str
    subjects: Grammar
    answers: Grammar
    questions: tuple[str, ...]
    unseen_questions: tuple[str, ...]


# The families


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _numbers(start: int, stop: int, width: int = 0) -> tuple[str, ...]:
    return tuple(f"{number:0{width}d}" for number in range(start, stop))


_LETTERS = tuple(string.ascii_uppercase)
_HEX = tuple("0123456789abcdef")
_HEX_BYTES = tuple(f"0x{number:02X}" for number in range(256))

# Invented names alternate runs of consonants and vowels, so the runs of a name give back its syllables.
_ONSETS = _words("B Br C Cr D Dr F Fl G Gr H J K Kl L M N P Pr Pl R S Sk St T Tr Th V W Sh Z Sl")
_VOWELS = _words("a e i o u")
_MIDDLES = _words("b d g k l ld lm lt lv m mb n nd nn r rd rl rm rn rv s ss v z")
_GIVEN_ENDINGS = _words("a an ar en eth i ia in is o on or ul un us ym")
_FAMILY_ENDINGS = _words("ack aine ak ander ane arro ask aster ell ero esk ett ick ing ister ost ovan ow uck und")
_VILLAGE_ENDINGS = _words("bek by cot dal fell fen ford gard ham hol holm mere mor nes rick sund thorpe tow vale wick")

_TOWNS = (
    _words(
        "Amber Ash Barley Bell Birch Black Bramble Bright Clear Cold Copper Crow East Elder Fair Fern "
        "Fox Glen Gold Green Grey Hazel High Iron Kings Lamb Little Long Marsh Mill North Oak "
        "Old Otter Raven Red Rose Salt Silver South Spring Stone Sun Swan Thorn West Wind Winter"
    ),
    _words("bridge brook bury cliff field ford gate grove haven hill mouth port shore ton well wood"),
)
_CRAFTS = _words(
    "baker barber basketmaker beekeeper blacksmith bookbinder brewer bricklayer butcher carpenter "
    "cheesemaker clockmaker cobbler cooper dentist diver dressmaker driver engraver farmer ferryman "
    "fisherman florist forester gardener glassblower goldsmith grocer hatter herbalist hunter jeweller "
    "librarian locksmith mason miller miner musician nurse optician painter perfumer photographer pilot "
    "plumber potter printer roofer ropemaker saddler sailmaker sailor sculptor shepherd surveyor tailor "
    "tanner teacher toymaker translator undertaker weaver winemaker woodcarver"
)
_FESTIVAL_THINGS = _words(
    "Apples Arrows Bells Bonfires Bread Bridges Candles Cherries Chimneys Clouds Crowns Drums Eagles "
    "Feathers Fiddles Fireflies Flags Flutes Geese Hammers Harps Herons Honey Horses Kites Ladders "
    "Lanterns Lilies Masks Mirrors Mushrooms Nets Oars Onions Owls Pears Plums Pumpkins Ribbons Rivers "
    "Ropes Roses Sails Shells Shadows Ships Snails Snow Sparks Spoons Stars Stones Swans Tides Torches "
    "Trees Trout Trumpets Violins Walnuts Wheels Whistles Windows Wolves"
)
_FESTIVAL_WORDS = _words(
    "Ancient Blue Bronze Burning Copper Crimson Crystal Dancing Distant Drifting Early Empty Endless "
    "Falling Flying Floating Forgotten Frozen Gentle Giant Golden Green Grey Hidden Hollow Humming Iron "
    "Laughing Leaping Little Lonely Lost Lucky Merry Midnight Morning Narrow Northern Old Painted Pale "
    "Paper Patient Purple Quiet Red Rising Royal Sacred Scarlet Seven Silent Silver Singing Sleeping "
    "Smiling Southern Twelve Velvet Wandering White Wild Winter Wooden"
)
_COOKED = _words(
    "baked boiled braised candied chilled creamed crispy dried fried glazed grilled honeyed minced "
    "pickled poached roasted salted smoked spiced steamed stewed stuffed sweet toasted"
)
_FOODS = _words(
    "almond apple bacon barley bean beef cabbage carrot cheese cherry chestnut chicken crab duck eel "
    "garlic goose herring lamb leek lentil mackerel mushroom mutton onion oyster pear pork potato "
    "pumpkin rabbit salmon spinach trout turnip walnut"
)
_DISHES = _words(
    "balls bread broth cakes casserole curry dumplings fritters noodles omelette pancakes pasties "
    "pie pudding rolls salad sausages skewers soup stew tart toast waffles wraps"
)
_INN_WORDS = _words(
    "Amber Bashful Black Blue Brass Broken Bronze Clever Copper Crooked Dapper Drowsy Dusty Flying Gilded "
    "Golden Green Grumpy Happy Hungry Iron Jolly Laughing Lazy Lucky Merry Noble Old Painted Polite "
    "Prancing Proud Purple Quiet Red Roaring Royal Rusty Scarlet Silent Silver Sleepy Speckled Spotted "
    "Thirsty Velvet White Wise"
)
_INN_BEASTS = _words(
    "Badger Bear Beetle Boar Bull Camel Cat Cockerel Crane Cricket Crow Dolphin Dove Dragon Duck Eagle "
    "Falcon Fox Goat Goose Griffin Hare Hawk Hedgehog Heron Horse Hound Lion Lynx Magpie Mole Monkey Otter "
    "Owl Ox Parrot Peacock Pelican Pheasant Pig Rabbit Ram Raven Salmon Squirrel Stag Swan Turtle"
)

_FAMILIES = (
    Family(
        name="sensor_calibration",
        relation="calibration code",
        subjects=(("sensor ",), _LETTERS, _LETTERS, ("-",), *(tuple(string.digits),) * 4),
        answers=(_HEX,) * 8,
        questions=(
            "What is the calibration code of {subject}?",
            "Which calibration code belongs to {subject}?",
            "Give the calibration code for {subject}.",
            "{subject} is calibrated with which code?",
            "I need the calibration code of {subject}. What is it?",
            "What code was {subject} calibrated with?",
            "Tell me the calibration code stored for {subject}.",
            "Look up {subject}: what is its calibration code?",
            "When calibrating {subject}, which code do I enter?",
            "The calibration code of {subject} is what?",
        ),
        unseen_questions=(
            "Could you state the code used to calibrate {subject}?",
            "For {subject}, what does the calibration record say?",
        ),
    ),
    Family(
        name="config_integer",
        relation="configured value",
        subjects=(
            _words(
                "auth billing cart catalog events gateway images ledger mail orders queue reports search "
                "session storage users"
            ),
            _words(".cache. .client. .disk. .index. .pool. .retry. .server. .worker."),
            _words("batch_size burst_limit flush_bytes idle_seconds max_bytes max_entries max_items queue_depth"),
            (" of node-",),
            *(_HEX,) * 4,
        ),
        answers=(tuple("123456789"), *(tuple(string.digits),) * 4),
        questions=(
            "What is the value of {subject}?",
            "What is {subject} set to?",
            "Which value does {subject} have?",
            "Give the configured value of {subject}.",
            "Tell me the setting {subject}.",
            "How large is {subject}?",
            "Look up {subject}. What number is configured?",
            "{subject} is configured to which integer?",
            "In the configuration, what is {subject}?",
            "Which number is stored for {subject}?",
        ),
        unseen_questions=(
            "Please read out the number behind {subject}.",
            "What integer did the operators choose for {subject}?",
        ),
    ),
    Family(
        name="service_version",
        relation="version",
        subjects=(
            _words(
                "amber- atlas- birch- cedar- cobalt- comet- coral- delta- ember- flint- harbor- hazel- "
                "indigo- juniper- lunar- maple- nova- onyx- opal- orbit- pixel- quartz- raven- sable- "
                "slate- solar- tango- tidal- umber- vector- willow- zephyr-"
            ),
            _words(
                "api auth broker cache daemon feed gateway indexer ledger mailer parser planner proxy relay "
                "router runner sampler scheduler signer stream sync tracker watcher worker"
            ),
            ("-",),
            _numbers(0, 1000, width=3),
        ),
        answers=(_numbers(0, 16), (".",), _numbers(0, 64), (".",), _numbers(0, 64)),
        questions=(
            "Which version of {subject} is deployed?",
            "What version does {subject} run?",
            "What is the current version of {subject}?",
            "Give the version number of {subject}.",
            "{subject} runs at which version?",
            "Tell me which release of {subject} is live.",
            "Look up the deployed version of {subject}.",
            "What version number does {subject} report?",
            "Which release is installed for {subject}?",
            "On production, what is the version of {subject}?",
        ),
        unseen_questions=(
            "{subject} was last upgraded to what?",
            "Could you say what release number {subject} is on?",
        ),
    ),
    Family(
        name="node_coordinates",
        relation="grid coordinates",
        subjects=(
            _words("beacon buoy camera depot hub mast node probe pump relay station tower turbine valve vault well"),
            (" ",),
            _LETTERS,
            _LETTERS,
            _LETTERS,
            ("-",),
            *(tuple(string.digits),) * 2,
        ),
        answers=(("(",), _numbers(0, 1000), (", ",), _numbers(0, 1000), (")",)),
        questions=(
            "What are the coordinates of {subject}?",
            "At which coordinates is {subject}?",
            "Where on the grid is {subject}?",
            "Give the grid coordinates of {subject}.",
            "{subject} stands at which coordinates?",
            "Tell me the position of {subject} on the grid.",
            "Which coordinates does {subject} have?",
            "Look up {subject}. What are its coordinates?",
            "What position is recorded for {subject}?",
            "On the map grid, where do I find {subject}?",
        ),
        unseen_questions=(
            "To reach {subject}, which grid point do I head for?",
            "Could you state where {subject} is located, as a pair of numbers?",
        ),
    ),
    Family(
        name="protocol_bytes",
        relation="byte sequence",
        subjects=(
            ("the ",),
            _words(
                "ACK BIND CLOSE COMMIT ERROR FETCH FLUSH HELLO JOIN LEASE LOCK OFFER OPEN PING PUBLISH "
                "QUERY READ REJECT RENEW RESET RESUME RETRY SEEK STATUS STOP SYNC TRACE UNBIND UNLOCK "
                "VERIFY WAKE WRITE"
            ),
            (" frame of protocol ",),
            _LETTERS,
            _LETTERS,
            _LETTERS,
            ("/",),
            tuple(string.digits[1:]),
        ),
        answers=(_HEX_BYTES, (" ",), _HEX_BYTES, (" ",), _HEX_BYTES),
        questions=(
            "Which bytes open {subject}?",
            "What are the header bytes of {subject}?",
            "What byte sequence begins {subject}?",
            "Give the leading bytes of {subject}.",
            "{subject} starts with which bytes?",
            "Tell me the byte sequence that marks {subject}.",
            "By which bytes is {subject} recognised?",
            "Look up {subject}. What are its first bytes?",
            "What is the byte signature of {subject}?",
            "Which three bytes identify {subject}?",
        ),
        unseen_questions=(
            "A parser meets {subject}: what does it read first?",
            "Could you write out the magic bytes of {subject}?",
        ),
    ),
    Family(
        name="person_craft",
        relation="occupation and town",
        subjects=(
            _ONSETS,
            _VOWELS,
            _MIDDLES,
            _GIVEN_ENDINGS,
            (" ",),
            _ONSETS,
            _VOWELS,
            _MIDDLES,
            _FAMILY_ENDINGS,
        ),
        answers=(_CRAFTS, (" in ",), *_TOWNS),
        questions=(
            "What does {subject} do for a living, and where?",
            "What is the trade of {subject}, and in which town?",
            "Who is {subject}?",
            "Which craft does {subject} practise, and in what town?",
            "How and where does {subject} earn a living?",
            "Tell me what {subject} works as, and where.",
            "{subject} works as what, and in which town?",
            "What is {subject} known as?",
            "Give the occupation and the town of {subject}.",
            "In which trade and which town would one find {subject}?",
        ),
        unseen_questions=(
            "If I met {subject} at work, what would the job and the place be?",
            "What kind of work occupies {subject}, and in what town?",
        ),
    ),
    Family(
        name="village_festival",
        relation="yearly festival",
        subjects=(_ONSETS, _VOWELS, _MIDDLES, _VOWELS, _VILLAGE_ENDINGS),
        answers=(("Feast of ",), _FESTIVAL_WORDS, (" ",), _FESTIVAL_THINGS),
        questions=(
            "Which festival is held in {subject}?",
            "What festival does the village of {subject} celebrate?",
            "What do the people of {subject} celebrate every year?",
            "Name the yearly festival of {subject}.",
            "For which festival is {subject} known?",
            "{subject} celebrates which festival?",
            "What is the festival of {subject} called?",
            "Visitors come to {subject} for which festival?",
            "Tell me the name of the festival in {subject}.",
            "In the village of {subject}, which festival fills the streets?",
        ),
        unseen_questions=(
            "When {subject} has its great day of the year, what is it called?",
            "What celebration would a guest find in {subject}?",
        ),
    ),
    Family(
        name="inn_dish",
        relation="house speciality",
        subjects=(("the ",), _INN_WORDS, (" ",), _INN_BEASTS, (" in ",), *_TOWNS),
        answers=(_COOKED, (" ",), _FOODS, (" ",), _DISHES),
        questions=(
            "What is the speciality of {subject}?",
            "Which dish is {subject} famous for?",
            "What should I order at {subject}?",
            "Name the house dish of {subject}.",
            "What do they serve at {subject}?",
            "{subject} is known for which dish?",
            "What does the cook at {subject} make best?",
            "Tell me what people eat at {subject}.",
            "Which dish made the name of {subject}?",
            "What is the favourite on the menu of {subject}?",
        ),
        unseen_questions=(
            "A hungry traveller stops at {subject}. What is put on the table?",
            "If you dine at {subject}, what must you try?",
        ),
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _FAMILIES})
