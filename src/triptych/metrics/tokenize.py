"""The words of a caption as caption metrics count them: Penn Treebank tokens, lower-case, without punctuation.

The COCO caption evaluation runs Stanford's PTBTokenizer (Java) and drops the punctuation; these rules give the same
tokens without Java. Marks belong to their letters in every script, and a zero-width joiner or non-joiner within a word
belongs to it: Java knows the marks of some scripts only, and no joiners. The rules leave out what captions hardly hold:
telephone numbers, mark-up with attributes, and the full stop after a letter that ends a sentence ("plan B. The dog").
"""

import html

import regex

from triptych.text.letters import LETTER as L
from triptych.text.letters import LETTER_OR_DIGIT as A
from triptych.text.letters import compose

TEXT_END = r"(?![\p{L}\p{N}])"
W = r"\p{L}\p{N}\p{M}_"

ABBREVIATIONS = (
    "mr|mrs|ms|messrs|mlle|mme|dr|drs|prof|hon|rev|rt|st|ste|esq|jr|sr|phd|gen|maj|col|capt|cmdr|lt|sgt|pvt|"
    "pfc|cpl|adm|gov|govs|sen|sens|rep|reps|pres|supt|insp|det|treas|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|"
    "nov|dec|mon|tue|tues|wed|thu|thurs|fri|inc|corp|co|cos|ltd|plc|cie|mfg|bros|assn|assoc|dept|univ|natl|"
    "intl|bldg|ave|blvd|rd|ct|sq|ft|mt|tel|ext|etc|vs|est|asst|atty|ala|ariz|calif|colo|conn|fla|ga|ind|kan|"
    "kans|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wis|wyo"
)
CAPITAL_ABBREVIATIONS = "Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"  # otherwise words of their own
NUMBERED_ABBREVIATIONS = "art|ca|figs?|nos?|op|pp"  # only before a number

TOKEN = regex.compile(
    rf"""
      (?:https?|ftp)://[^\s<>|()]*[^\s<>|().!?,;:&"'*-]          # addresses, handles, tags
    | (?:[{W}-]+\.)+(?:com|net|org|edu)(?:/[^\s<>|]*[^\s<>|.!?,;:&"')-])?{TEXT_END}
    | [{W}.+-]+@(?:[{W}-]+\.)*[{W}-]+
    | [@#][A-Za-z_][{W}]*
    | </?[A-Za-z][^<>\s]*>
    | [:;=][-o*']?[()DPdp]{TEXT_END}                                    # smileys

    | (?i:{ABBREVIATIONS})\.{TEXT_END}                      # abbreviations keep their full stop
    | (?:{CAPITAL_ABBREVIATIONS})\.{TEXT_END}
    | (?i:{NUMBERED_ABBREVIATIONS})\.(?=\s?\d)
    | [A-Za-z](?:\.[A-Za-z])*\.(?!{A}|-)

    | (?i:can(?=not)|(?:gon|wan)(?=na)|got(?=ta)|(?:gim|lem)(?=me))(?=[{W}]{{2,3}}(?![{W}'-]))  # one word for two
    | '[tT](?=(?i:is|was){TEXT_END})
    | [yjYJ]'(?={L})
    | (?i:{L}*(?!n){L}(?=n't{TEXT_END}))                             # do n't, she 's
    | (?i:n't|'(?:s|m|d|re|ve|ll)){TEXT_END}

    | '[nN]\b'?                                                  # an apostrophe that belongs to the word
    | '(?i:em|till?|cause){TEXT_END}
    | '[1-9]0s{TEXT_END}
    | (?i:c'mon|e'er|s'mores|li'l|ev'ry|nat'l|nor'easter|ol'|dunkin'){TEXT_END}
    | {L}+[aeiouyAEIOUY]'(?!(?i:s|m|d|re|ve|ll){TEXT_END})[aeiouA-Z]{L}*
    | [A-HJ-XZn]'{L}{{2,}}
    | [dolDOL]'{A}+(?:-{A}+)*

    | \d{{1,4}}-\d{{1,4}}/\d{{1,4}}
    | {A}+(?:-{L}+){{0,2}}(?:/{A}+(?:-{L}+){{0,2}}){{1,2}}       # and/or, 1/2
    | {A}(?:{A}|[.,])*(?:[-_](?:(?:[A-Za-z]\.){{2,}}|{A}+(?:\.\d+)?))+    # t-shirt, 3.5-inch, non-u.s.
    | [A-Z]+(?:&[A-Z]+)+
    | [A-Z]+\$
    | {L}{A}*(?:[.!?]{L}{A}*)*                                   # words, also with a full stop inside
    | [-+]?\d*(?:[.:,]\d+)+                                      # 8:25, 3.5, 1,000
    | [-+]\d+
    | {A}+

    | [?!]+ | -+ | _+ | \*+ | \#+ | @+ | [^{W}\p{{C}}\s] | (?P<stray>\p{{M}}+)
    """,
    regex.VERBOSE,
)
REWRITTEN = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
    | {"£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4"}
)
PUNCTUATION = {*".?!,:;'`\"‘“”…–—", "-", "--", "---", "----"}


def ptb_tokenize(text: str) -> list[str]:
    """The lower-case tokens of `text`, none of them punctuation: "It's a dog." gives ["it", "'s", "a", "dog"]."""
    matches = TOKEN.finditer(compose(html.unescape(text)).replace("’", "'"))
    tokens = (match[0] for match in matches if not match["stray"])
    return [compose(token.lower()).translate(REWRITTEN) for token in tokens if token not in PUNCTUATION]
