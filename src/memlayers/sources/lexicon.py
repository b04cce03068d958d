"""English words that rules tell a fact by: nouns of relations, words for documents, words that say nothing certain."""

from __future__ import annotations

import re
from typing import Final

ROLES: Final = frozenset(
    "accountant administrator ambassador architect assistant auditor author bookkeeper boss builder caretaker cashier "
    "ceo cfo chairman chairperson chairwoman chancellor chef chief cio coach commander commissioner composer "
    "conductor contact controller coordinator coo counsel cto curator custodian dean deputy designer developer "
    "director discoverer editor engineer executive founder governor guide head host hr illustrator inspector "
    "instructor inventor janitor king landlord lawyer leader lecturer librarian maintainer manager mayor mentor "
    "minister monarch narrator nurse officer operator organiser organizer owner painter patron physician pilot "
    "planner president principal producer professor publisher queen receptionist rector registrar representative "
    "secretary speaker sponsor steward successor superintendent supervisor surveyor teacher technician translator "
    "treasurer trustee tutor vet vice-chancellor warden writer partner husband wife father mother spouse aider "
    "marshal".split()
)
"""Nouns whose value is a person."""

PLACES: Final = frozenset(
    "address archive base birthplace capital city destination entrance exit factory garage headquarters hq "
    "laboratory library location office place plant point port residence room seat site station store summit venue "
    "warehouse workshop workplace space park shed cabinet cupboard".split()
)
"""Nouns whose value is a place."""

QUANTITIES: Final = frozenset(
    "age allowance altitude amount area balance bonus budget capacity charge circumference cost count deadline "
    "deposit density depth diameter discount distance dose duration efficiency elevation expectancy fare fee fine "
    "frequency gdp grant height income inflation interval length level limit limitation lifespan mass maximum minimum "
    "number output payment pension percentage period population power premium pressure price quantity quota radius "
    "range rate ratio rent resolution salary share size speed strength subscription surcharge tax temperature term "
    "time timeout total turnover value voltage volume wage warranty weight width wingspan retention notice".split()
)
"""Nouns whose value is a number, mostly with a unit."""

NAMES: Final = frozenset(
    "abbreviation airport anthem bank bird brand browser carrier code colour color conference constellation "
    "contractor couple currency database day demonym distributor domain dish drink email e-mail emblem employer event "
    "extension fax flag flower font format framework genre hashtag holiday hours icon id identifier insurer kit "
    "language law licence license lender line lines logo magazine manufacturer mascot material medium mobile model "
    "motto name nationality network newsletter newspaper nickname number occupation party password pet phone "
    "platform port prefix product profession protocol provider publication religion registration schedule school "
    "sequel series sister slogan song species sport star status supplier symbol system team telephone theme timezone "
    "title topic tree tributary type unit university url vendor version website winner year zone date birthday "
    "anniversary month week code part bike vehicle assembly dress printer start end break expiry".split()
)
"""Other nouns that say what something is to somebody."""

RELATIONAL: Final = ROLES | PLACES | QUANTITIES | NAMES
LOWER_CASE: Final = frozenset(
    "bird colour color currency dish drink flower genre language material medium occupation password pet profession "
    "religion species sport status tree type unit code system product dress".split()
)
"""Nouns whose value may be a word in lower case."""

PAST: Final = frozenset(
    "architect author builder composer designer developer discoverer founder inventor painter translator winner "
    "writer producer illustrator".split()
)
"""Nouns of what happened once: "the founder was" says it as well as "is"."""

SUPERLATIVE: Final = re.compile(r"(?:(?:second|third|fourth|fifth|\w+th)[- ])?(?:\w{3,}est|most \w+|least \w+)\b")
_NOT_THE: Final = frozenset(
    "above actual answer best below case concept difference early entire example exact fact final first following "
    "former goal idea important initial last late latter new next old only other past possible previous problem "
    "proposed purpose question reason real result right same second similar single solution then third true typical "
    "usual whole wrong acting interim".split()
)
"""Words before a noun that point elsewhere in a text, or back in time."""

DOCUMENT_WORDS: Final = (
    r"(?:(?:staff|employee|employees'?|user|users'?|owner'?s|product|company|quick|reference|style|team|member|"
    r"training|safety|installation|service|new)\s+)*(?:handbook|manual|guide|guidelines?|policy|policies|faqs?|"
    r"factbook|fact sheet|factsheet|data ?sheet|profile|overview|documentation|docs|report|readme|wiki|brochure|"
    r"catalogue|catalog|price ?list|directory|newsletter|leaflet|information|info|at a glance|specifications?|"
    r"homepage|website|page|notes|introduction|summary|article|country profile)"
)
ORGANISED_WORDS: Final = re.compile(
    r"\b(?:handbook|policy|policies|staff|employee|company|team|office|visitor|guidelines?)\b", re.IGNORECASE
)
"""Words in a title which say that the document speaks about an organisation and what is in it."""

LEGAL_FORM: Final = re.compile(
    r",?\s+(?:Ltd|Limited|Inc|LLC|LLP|plc|PLC|GmbH|AG|SA|S\.A|BV|B\.V|Corp|Corporation|Co|Pty|KG|SE|Oy|AB|AS|SpA)\b\.?"
)
ORGANISATION: Final = (
    "association business charity club college company cooperative co-operative council firm foundation group hospital "
    "hotel institute library manufacturer museum office organisation organization practice restaurant school shop "
    "society start-up startup team theatre university workshop"
).split()

GENERAL_HEADINGS: Final = frozenset(
    "about|about us|about this document|abstract|acknowledgements|additional information|all|appendix|at a glance|"
    "background|basic facts|basics|changelog|changes|conclusion|contact|contact details|contact us|contacts|contents|"
    "contributing|data|description|detail|details|discussion|documentation|examples|external links|facts|"
    "facts and figures|faq|features|further information|general|general information|getting started|glossary|help|"
    "history|home|important facts|index|info|information|installation|introduction|key data|key facts|links|"
    "main page|misc|miscellaneous|more|news|notes|other|overview|people|profile|properties|quick facts|readme|"
    "references|results|see also|specification|specifications|statistics|summary|table of contents|technical data|"
    "technical specifications|the company|usage|what is new|who is who|who's who|in short|numbers".split("|")
)
"""Headings that say nothing of what stands beneath, and are no name."""

WEAK_KEYS: Final = frozenset(
    "adjective all amount annual average both combined count date day domestic each elsewhere end export exports "
    "external female female(s) female/male foreign four from general gross high import imports in indoor internal "
    "international land large local long low main male male(s) maximum mean medium men minimum minor monday tuesday "
    "wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays saturdays sundays "
    "weekdays weekends january february march april may june july august september october november december name "
    "national net none noun number one other others outdoor overall part per percent percentage private public "
    "quantity rate rural second short small start subtotal sum third time title total totals two type unknown urban "
    "value water women yearly year years first last adults children seniors yes no new old open closed".split()
)
"""Keys that say nothing without the heading above them."""

NO_KEYS: Final = frozenset(
    "a added advice and answer assumption attention author's note bug but caution change changed changes citation "
    "conclusion danger definition e.g. edit error example examples exception exceptions e.x. figure fig fixed fix "
    "footnote for example hint however i.e. idea important in short in summary info input issue keep in mind key key "
    "point nb n.b. note notes observation optional or output p.s. problem ps proof q question quote read more reason "
    "recommendation remark remarks remember removed requires result results see see also so solution source sources "
    "step summary table then tip tips todo to do translation update usage useful versus vs warning where why who what "
    "when how which".split()
) | {
    "left",
    "right",
    "top",
    "bottom",
    "above",
    "below",
    "clockwise",
    "caption",
    "see also",
    "for example",
    "key point",
    "in short",
    "in summary",
    "read more",
    "author's note",
    "to do",
}
"""Keys that are no relation."""

NO_VALUES: Final = frozenset(
    "na|n/a|n.a.|-|--|–|—|?|??|tbd|tba|tbc|todo|unknown|not available|not applicable|not known|...|…|none yet|"
    "to be announced|to be confirmed|to be determined|no data|nil|null|nan|x|xx".split("|")
)
"""Values that say that there is none, in lower case."""

SENTENCE_VALUE: Final = re.compile(
    r"(?:it|they|we|you|he|she|i|there|this|these|that|those|if|when|whether|see|use|run|please|click|make sure|do not|"
    r"don['’]t|let|add|set|run|as above|same as|because|what|how|why|who|which|where)\b",
    re.IGNORECASE,
)
"""How a value begins that is a sentence, or points elsewhere."""

UNCERTAIN: Final = re.compile(
    r"\b(?:not|never|no longer|nor|neither|nobody|perhaps|possibly|probably|presumably|reportedly|allegedly|supposedly|"
    r"apparently|might|could|would|said to|says|claims? that|claimed|believed|thought|considered|regarded|rumou?red|"
    r"according to|unless|whether|if|although|however|used to|formerly|former|once|planned|expected|proposed|"
    r"fictional|legend|legendary|myth|mythical|hypothetical|imagine|suppose|except|unlike|sometimes|usually|often|"
    r"depending|depends|typically|generally|mostly|hopefully|maybe|etc|in theory)\b|n['’]t\b|\?",
    re.IGNORECASE,
)
"""What makes a sentence no plain statement."""


def head_noun(relation: str) -> str:
    """The noun that a relation is about, in the singular: "warden" of "fire wardens on the first floor"."""
    phrase = re.split(
        r"\s+(?:of|for|in|at|on|per|with|to|by|from|under|behind|between|married|aged)\s+|\s*\(|,", relation, maxsplit=1
    )[0]
    words = phrase.casefold().split()
    return singular(words[-1]) if words else ""


def singular(noun: str) -> str:
    """A noun in the singular, where a rule of spelling tells it."""
    if noun in RELATIONAL or noun.endswith(("ss", "us", "is")):
        return noun
    for plural, one in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("s", "")):
        if noun.endswith(plural) and len(noun) > len(plural) + 1:
            return noun.removesuffix(plural) + one
    return noun


def is_relational(relation: str) -> bool:
    """Whether a phrase names something that a subject has exactly one of, or one list of."""
    words = relation.casefold().split()
    return bool(words) and head_noun(relation) in RELATIONAL and not _NOT_THE & set(words[:2])
