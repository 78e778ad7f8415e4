// The page: starts the sections over the server's routes, each as soon as a model can answer it.

import { startAsk, startCaptions } from "./answers.js";
import { get } from "./api.js";
import { startChat } from "./chat.js";
import { startCompare } from "./compare.js";
import { startFewshot } from "./fewshot.js";
import { startFind } from "./find.js";
import { showGates, showMasks } from "./inside.js";
import { explained, startLanguage, text } from "./language.js";
import { View } from "./maps.js";
import { Picker } from "./photos.js";
import { $, modelsThat, onSubmit, say, setModels, title, translated } from "./ui.js";

function startPickers(examples, drawings) {
  const pickers = {};
  for (const host of document.querySelectorAll("[data-picker]")) {
    const offered = host.dataset.picker === "query" ? [...drawings, ...examples] : examples;
    pickers[host.dataset.picker] = new Picker(host, offered, () => say(""), (message) => say(message, true));
  }
  return pickers;
}

// The photo of a section in large; another photo empties its answers.
function startView(name, picker) {
  const view = new View($(`${name}-view`), picker);
  picker.changed = (photo) => {
    if (photo) say("");
    $(`${name}-run`).disabled = !photo;
    $(`${name}-results`).replaceChildren();
    view.draw();
  };
  return view;
}

// A file that is dropped beside a picker must not replace the page.
function ignoreOtherDrops() {
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
}

// Those that are loaded can be used while others are still loading.
async function waitForModels(state) {
  setModels(state.models);
  if (state.loading) say(text("loading"));
  while (state.loading) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    state = await get("v1/page");
    setModels(state.models);
  }
  return state;
}

// Sections that no model of this server can answer say so.
function closeUnanswered({ library }) {
  for (const section of document.querySelectorAll("[data-needs]")) {
    if (!modelsThat(section.dataset.needs).length) section.querySelector(".work").replaceWith(translated("p", "note", "noModel"));
  }
  if (!library) document.querySelector("#find .work")?.replaceWith(translated("p", "note", "noLibrary"));
}

async function start() {
  startLanguage($("language"));
  ignoreOtherDrops();
  const first = await get("v1/page");
  const pickers = startPickers(first.examples, first.drawings);
  startCaptions(pickers.caption, startView("caption", pickers.caption));
  startAsk(pickers.ask, startView("ask", pickers.ask));
  startCompare(pickers.left, pickers.right);
  startFewshot(pickers.query, [...first.drawings, ...first.examples]);
  startChat(pickers.chat);
  startFind();
  onSubmit($("mask-form"), (form) => showMasks(form.get("text")));
  const state = await waitForModels(first);
  closeUnanswered(state);
  await showMasks("a cat wearing sunglasses");
  if (modelsThat("complete").length) await showGates();
  const names = state.models.map((model) => title(model.name)).join(" · ");
  if (state.failed.length) say(`${names} ${text("failed")} ${state.failed.map(title).join(", ")}`, true);
  else say(names);
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => say(explained(error), true));
