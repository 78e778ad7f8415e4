// What all sections share: the status line, cards of answers, and which models the server has.

import { explained, text } from "./language.js";
import { element } from "./photos.js";

const NAMES = { sat: "Show, Attend and Tell", flamingo: "Flamingo", blip2: "BLIP-2" };
let models = [];

export const $ = (id) => document.getElementById(id);

export function setModels(loaded) {
  models = loaded;
}

// The names of the models that can do this: caption, ask, match, complete, chat or explain.
export function modelsThat(verb) {
  return models.filter((model) => model.can.includes(verb)).map((model) => model.name);
}

// The same for a request now. Throws: none is loaded yet.
export function modelsFor(verb) {
  const names = modelsThat(verb);
  if (!names.length) throw new Error(text("loading"));
  return names;
}

export function title(model) {
  return NAMES[model] ?? model;
}

export function say(message, bad = false) {
  $("status").textContent = message;
  $("status").classList.toggle("error", bad);
}

// Run one request of a button: its progress and its error are in the status line; the button is disabled meanwhile.
export async function run(button, work) {
  button.disabled = true;
  say(text("working"));
  try {
    await work();
    say(text("done"));
  } catch (error) {
    say(explained(error), true);
  } finally {
    button.disabled = false;
  }
}

export function onSubmit(form, work) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run(event.submitter ?? form.querySelector("button"), () => work(new FormData(form)));
  });
}

export function card(heading, ...content) {
  const article = element("article", "card");
  article.append(element("h3", "", heading), ...content);
  return article;
}

// A text of the page that follows the chosen language.
export function translated(tag, className, key) {
  const node = element(tag, className, text(key));
  node.dataset.text = key;
  return node;
}

export function photoOf(picker) {
  if (!picker.photo) {
    picker.drop.scrollIntoView({ block: "center" });
    throw new Error(text("needPhoto"));
  }
  return picker.photo.url;
}

// Choices with their shares of the probability, as bars.
export function scoreBars(scores) {
  const list = element("div", "bars");
  const values = Object.entries(scores);
  const top = Math.max(...values.map(([, value]) => value));
  const weights = values.map(([, value]) => Math.exp(value - top));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  values.forEach(([choice], index) => {
    const row = element("label", "", `${choice}: ${Math.round((100 * weights[index]) / total)}%`);
    const meter = element("meter");
    meter.value = weights[index] / total;
    row.append(meter);
    list.append(row);
  });
  return list;
}
