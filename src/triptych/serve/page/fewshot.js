// A few examples, photos with names, and a photo that is named in the same way.

import { post } from "./api.js";
import { element, Picker } from "./photos.js";
import { $, card, modelsFor, onSubmit, photoOf, say, scoreBars, title, translated } from "./ui.js";

export function startFewshot(query, examples) {
  const shots = [];
  const add = (placeholder = "") => {
    const row = element("div", "shot");
    const host = element("div", "picker");
    const label = element("label");
    const input = element("input");
    input.maxLength = 100;
    input.placeholder = placeholder;
    label.append(translated("span", "", "name"), input);
    const remove = translated("button", "", "remove");
    remove.type = "button";
    const shot = { picker: new Picker(host, examples, () => {}, (message) => say(message, true)), input };
    remove.addEventListener("click", () => {
      shots.splice(shots.indexOf(shot), 1);
      row.remove();
    });
    row.append(host, label, remove);
    $("shots").append(row);
    shots.push(shot);
  };
  $("add-shot").addEventListener("click", () => add());
  add("a dax");
  add("a blicket");
  onSubmit($("fewshot-form"), async (form) => {
    const [model] = modelsFor("complete");
    const given = shots.filter((shot) => shot.picker.photo && shot.input.value.trim());
    const names = [...new Set(given.map((shot) => shot.input.value.trim()))];
    const prompt = form.get("prompt");
    const body = {
      model,
      image: photoOf(query),
      shots: given.map((shot) => ({ image: shot.picker.photo.url, text: `${prompt} ${shot.input.value.trim()}`.trim() })),
      prompt,
    };
    const { text: completion } = await post("v1/complete", body);
    const content = [element("p", "words", completion)];
    if (names.length > 1) content.push(scoreBars((await post("v1/complete", { ...body, choices: names })).scores));
    $("fewshot-results").replaceChildren(card(title(model), ...content));
  });
}
