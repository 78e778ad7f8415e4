"""Prompts of all systems: a text in which each ``<image>`` stands for a picture, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from triptych.errors import InputError

IMAGE = "<image>"
END = "<|endofchunk|>"  # ends an example within a prompt
CAPTION = f"{IMAGE}\nCaption:"
IGNORED = -100  # a label that does not count in the loss
CAPTION_INSTRUCTION = "describe the photo"  # the Q-Former's question when a caption is wanted


@dataclass(frozen=True)
class Prompts:
    """The prompts that a model was trained with; they are part of its checkpoint. The defaults are those of the models trained here.

    ``caption``: the prompt of a caption, with an ``<image>``. ``question``: the prompt of a question, with ``{}`` in its place; the
    photos come before it, or at an ``<image>`` in it. ``published``: photos have no names, and the language model's begin token follows
    them, as in transformers and LAVIS. ``whole``: a Q-Former that reads the question reads the whole prompt, even that of a caption
    (InstructBLIP). ``gap``: the characters between a prompt and its answer. ``around``: a special token before and after each photo, only
    one between two photos.
    """

    caption: str = CAPTION
    question: str = "Question: {}\nAnswer:"
    published: bool = False
    whole: bool = False
    gap: str = " "
    around: str = ""


DEFAULT_PROMPTS = Prompts()
BLIP2_OPT = Prompts(f"{IMAGE}a photo of", "Question: {} Answer:", published=True)
BLIP2_T5 = Prompts(f"{IMAGE}a photo of", "Question: {} Short answer:", published=True)
OPEN_FLAMINGO = Prompts(f"{IMAGE}Output:", "Question:{} Short answer:", published=True, gap="")
IDEFICS_CHAT = Prompts(
    f"User:{IMAGE}Describe this image.\nAssistant:",
    f"User:{IMAGE}{{}}\nAssistant:",
    published=True,
    around="<fake_token_around_image>",
)
IDEFICS_INSTRUCT = replace(
    IDEFICS_CHAT,
    caption=f"User:{IMAGE}Describe this image.{END}\nAssistant:",
    question=f"User:{IMAGE}{{}}{END}\nAssistant:",
)
INSTRUCT_BLIP = Prompts(f"{IMAGE}A short image description:", "Question: {} Short answer:", published=True, whole=True)


def question_prompt(question: str, pictures: int, prompts: Prompts = DEFAULT_PROMPTS) -> str:
    """The prompt of a question about photos, which come before it unless the question has an ``<image>`` for each.

    Raises:
        InputError: the question is empty, or contains the mark that ends an example.
    """
    question = " ".join(question.split())
    if END in question:
        raise InputError(f"the question contains {END}, which ends an example: leave it out")
    if not question.replace(IMAGE, "").strip():
        raise InputError("the question is empty: ask something about the photo")
    if IMAGE in prompts.question:
        return prompts.question.replace(IMAGE, "" if IMAGE in question else IMAGE * pictures).replace("{}", question)
    text = prompts.question.replace("{}", question)
    if IMAGE in question:
        return text
    return IMAGE * pictures + text if prompts.published else f"{photo_lines(pictures)}\n{text}"


def photo_lines(pictures: int) -> str:
    """The lines of the photos before a question: a single photo without a name, several with ``photo_names``."""
    if pictures == 1:
        return IMAGE
    return "\n".join(f"{name}: {IMAGE}" for name in photo_names(pictures))


def captions_by_picture(captions: Sequence[str], prompts: Prompts = DEFAULT_PROMPTS) -> str:
    """The pictures, each with its name and its caption."""
    named = zip(photo_names(len(captions)), captions, strict=True)
    return "".join(f"{name}: {prompts.caption}{prompts.gap}{text}{END}" for name, text in named)


def caption_example(text: str, pictured: bool, prompts: Prompts) -> str:
    """A caption as an example in a prompt, with a picture or without one (``pictured``)."""
    prompt = prompts.caption if pictured else prompts.caption.replace(IMAGE, "").lstrip()
    return f"{prompt}{prompts.gap}{shot_text(text)}{END}"


def question_example(question: str, answer: str, pictured: bool, prompts: Prompts) -> str:
    """A question with its answer as an example in a prompt, about a picture or without one (``pictured``)."""
    prompt = question_prompt(question, 1, prompts)
    return f"{prompt if pictured else prompt.replace(IMAGE, '').lstrip()}{prompts.gap}{shot_text(answer)}{END}"


def question_after_pictures(question: str, prompts: Prompts = DEFAULT_PROMPTS) -> str:
    """A question about pictures that come earlier in the prompt."""
    return question_prompt(question, 1, prompts).replace(IMAGE, "", 1)


def qformer_texts(question: str, pictures: int) -> list[str]:
    """The Q-Former's text for each photo: the question without ``<image>``, after the photo's name where there are several."""
    words = " ".join(question.replace(IMAGE, " ").split())
    return [words] if pictures == 1 else [f"{name.lower()}: {words}" for name in photo_names(pictures)]


def photo_names(pictures: int) -> list[str]:
    """Two are left and right, more are numbered."""
    return ["Left photo", "Right photo"] if pictures == 2 else [f"Photo {n + 1}" for n in range(pictures)]


def split_at_images(prompt: str, pictures: int) -> list[str]:
    """The texts before, between and after the pictures, ``pictures + 1`` of them.

    Raises:
        InputError: the prompt does not have one ``<image>`` for each picture.
    """
    texts = prompt.split(IMAGE)
    if len(texts) - 1 != pictures:
        raise InputError(
            f"{pictures} {'picture' if pictures == 1 else 'pictures'} but {len(texts) - 1} {IMAGE} in the prompt: "
            "each picture needs one"
        )
    return texts


def few_shot(shots: Sequence[tuple[bool, str]], query: str, gap: str = " ") -> str:
    """Examples, then the query (Flamingo, Alayrac et al. 2022, section 3.4): ``"<image> a shiba<|endofchunk|><image> This is"``.

    ``shots``: for each example whether it has a picture, and its text. ``query``: the text after the last picture; may be empty.
    ``gap``: the characters between a picture and its text.

    Raises:
        InputError: an example without text, or a text that contains ``<image>`` or ``<|endofchunk|>``.
    """
    examples = [f"{IMAGE if pictured else ''}{gap}{shot_text(text)}{END}" for pictured, text in shots]
    return "".join(examples) + f"{IMAGE}{gap}{shot_text(query) if query.strip() else ''}".rstrip()


def shot_text(text: str) -> str:
    """The text of an example on one line. Raises InputError: it is empty, or contains ``<image>`` or ``<|endofchunk|>``."""
    if IMAGE in text or END in text:
        raise InputError(f"{text!r} contains {IMAGE} or {END}: leave them out, they are added to each example")
    if not text.strip():
        raise InputError("an example has no text: say what its picture shows")
    return " ".join(text.split())
