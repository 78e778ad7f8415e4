// Two photos and a question; swapping the photos reveals a system that goes by their places.

import { post } from "./api.js";
import { text } from "./language.js";
import { element } from "./photos.js";
import { $, card, modelsFor, onSubmit, photoOf, run, scoreBars, title, translated } from "./ui.js";

export function startCompare(left, right) {
  let before = {}; // the last answers, by model

  async function ask(form, swapped) {
    const body = { images: [photoOf(left), photoOf(right)], question: form.get("question"), choices: [form.get("a"), form.get("b")] };
    const answers = element("div", "cards");
    const group = element("section", "order");
    group.append(pairOf(left, right), answers);
    $("compare-results").prepend(group);
    const now = {};
    for (const model of modelsFor("ask")) {
      const { answer, scores } = await post("v1/ask", { model, ...body });
      now[model] = answer;
      const content = [element("p", "words", answer), scoreBars(scores)];
      if (swapped && before[model]) content.push(translated("p", "note", before[model] === answer ? "samePlace" : "followsPhoto"));
      answers.append(card(title(model), ...content));
    }
    before = now;
  }

  onSubmit($("compare-form"), (form) => ask(form, false));
  $("swap").addEventListener("click", () =>
    run($("swap"), async () => {
      photoOf(left);
      photoOf(right);
      const first = left.photo;
      left.set(right.photo);
      right.set(first);
      await ask(new FormData($("compare-form")), true);
    }),
  );
}

function pairOf(...pickers) {
  const row = element("p", "thumbnails");
  pickers.forEach((picker, index) => {
    const image = element("img");
    image.src = picker.photo.url;
    image.alt = text("chosen");
    row.append(translated("span", "note", index ? "right" : "left"), image);
  });
  return row;
}
