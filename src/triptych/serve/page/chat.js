// A dialogue, streamed; each message may bring a photo.

import { chatPieces } from "./api.js";
import { explained, text } from "./language.js";
import { element } from "./photos.js";
import { $, modelsFor, onSubmit, title } from "./ui.js";

export function startChat(picker) {
  let messages = [];
  onSubmit($("chat-form"), async (form) => {
    const [model] = modelsFor("chat");
    const message = form.get("message");
    const image = picker.photo?.url;
    if (!image && !messages.length) throw new Error(text("needPhoto"));
    const parts = image ? [{ type: "image_url", image_url: { url: image } }] : [];
    const next = [...messages, { role: "user", content: [...parts, { type: "text", text: message }] }];
    addTurn(text("person"), message, image);
    const answer = addTurn(title(model), "…");
    try {
      let written = "";
      for await (const piece of chatPieces(model, next)) {
        written += piece;
        answer.textContent = written;
      }
      messages = [...next, { role: "assistant", content: written }];
      picker.set(null);
      $("chat-form").reset();
    } catch (error) {
      answer.textContent = explained(error);
      throw error;
    }
  });
  $("chat-new").addEventListener("click", () => {
    messages = [];
    $("turns").replaceChildren();
  });
}

function addTurn(who, content, image) {
  const written = element("span", "", content);
  const message = element("div");
  if (image) {
    const photo = element("img");
    photo.src = image;
    photo.alt = text("chosen");
    message.append(photo);
  }
  message.append(written);
  const item = element("li");
  item.append(element("span", "who", who), message);
  $("turns").append(item);
  return written;
}
