"""Messages of clients become the dialogue that the model would have had itself."""

from PIL import Image
from toy_models import ToyFlamingo

from triptych.serve.chat import continued, read_dialogue
from triptych.tasks.chat import PICTURE_SIDE, Turn, shrink


def test_earlier_turns_are_as_the_chat_would_have_kept_them() -> None:
    large = Image.effect_noise((2 * PICTURE_SIDE, PICTURE_SIDE), 50).convert("RGB")
    messages = [
        ("user", "What is this?", [large]),
        ("assistant", "A <image>dog.<|endofchunk|>", []),
        ("user", "And this?", [large]),
    ]
    chat = continued(ToyFlamingo(), read_dialogue(messages, {}))
    (turn,), (waiting,) = chat.turns, chat.waiting
    assert (turn.question, turn.answer) == ("What is this?", " A dog.")
    assert waiting.size == (PICTURE_SIDE, PICTURE_SIDE // 2)
    assert turn.pictures[0].tobytes() == waiting.tobytes() == shrink(large).tobytes()


def test_a_picture_without_words_may_begin_a_dialogue() -> None:
    photo = Image.new("RGB", (32, 32))
    messages = [("user", "", [photo]), ("assistant", "A dog runs.", []), ("user", "What colour is it?", [])]
    chat = continued(ToyFlamingo(), read_dialogue(messages, {}))
    (turn,) = chat.turns
    described = Turn((photo,), "What is in the photo?", " A dog runs.")
    assert turn.prompt(chat.prompts) == described.prompt(chat.prompts)
