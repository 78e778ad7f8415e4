"""What a question asks for, read off its words: which picture, whether something is there or is so, what all pictures share.

The functions expect a ``plain_question``.
"""

from triptych.text.questions.kinds import (
    alternatives_in,
    asks_for_description,
    asks_for_number,
    asks_to_compare,
    asks_what_is_shared,
    is_about_all,
)
from triptych.text.questions.pictures import (
    PicturesShowing,
    WhichPicture,
    about_one_photo,
    named_pictures,
    names_one_of_several,
    one_picture_asked_about,
    pictures_named_by,
    pictures_showing,
    statement,
    which_picture,
)
from triptych.text.questions.wording import plain_question
from triptych.text.questions.yes_no import (
    Claim,
    Presence,
    claim_asked_about,
    is_counted,
    is_yes_no,
    presence_asked_about,
    presence_question,
)

__all__ = [
    "Claim",
    "PicturesShowing",
    "Presence",
    "WhichPicture",
    "about_one_photo",
    "alternatives_in",
    "asks_for_description",
    "asks_for_number",
    "asks_to_compare",
    "asks_what_is_shared",
    "claim_asked_about",
    "is_about_all",
    "is_counted",
    "is_yes_no",
    "named_pictures",
    "names_one_of_several",
    "one_picture_asked_about",
    "pictures_named_by",
    "pictures_showing",
    "plain_question",
    "presence_asked_about",
    "presence_question",
    "statement",
    "which_picture",
]
