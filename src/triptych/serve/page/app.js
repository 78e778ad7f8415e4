// The page: one section a verb, each a few lines over the server's routes.

import { chatPieces, get, post } from "./api.js";
import { startLanguage, text } from "./language.js";
import { drawPhoto, wordButtons } from "./maps.js";
import { element, Picker } from "./photos.js";

const $ = (id) => document.getElementById(id);
const NAMES = { sat: "Show, Attend and Tell", flamingo: "Flamingo", blip2: "BLIP-2" };
let models = [];

function say(message, bad = false) {
  $("status").textContent = message;
  $("status").classList.toggle("error", bad);
}

// Run one request of the page: its state in the status line, its error too, and no second one of the same button meanwhile.
async function run(button, work) {
  button.disabled = true;
  say(text("working"));
  try {
    await work();
    say(text("done"));
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

function card(title, ...content) {
  const made = element("article", "card");
  made.append(element("h3", "", title), ...content);
  return made;
}

function needed(picker) {
  if (!picker.photo) throw new Error(text("needPhoto"));
  return picker.photo.url;
}

function scores(scores) {
  const list = element("div");
  const values = Object.entries(scores);
  const top = Math.max(...values.map(([, value]) => value));
  const weights = values.map(([, value]) => Math.exp(value - top));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  values.forEach(([choice], index) => {
    const row = element("label", "note", `${choice}: ${Math.round((100 * weights[index]) / total)}%`);
    const meter = element("meter");
    meter.value = weights[index] / total;
    row.append(meter);
    list.append(row);
  });
  return list;
}

function startPickers(examples) {
  const pickers = {};
  for (const host of document.querySelectorAll("[data-picker]")) {
    const name = host.dataset.picker;
    pickers[name] = new Picker(host, examples, (photo) => chosen(name, photo), (message) => say(message, true));
  }
  return pickers;
}

function chosen(name, photo) {
  if (photo) say("");
  if (name === "caption") {
    $("caption-run").disabled = !photo;
    $("caption-results").replaceChildren();
    drawPhoto($("caption-view"), photo);
  } else if (name === "ask") {
    drawPhoto($("ask-view"), photo);
    $("ask-results").replaceChildren();
  }
}

function showMap(canvas, picker) {
  return (map, word) => {
    drawPhoto(canvas, picker.photo, map);
    canvas.setAttribute("aria-label", word);
  };
}

// The captions first; where each model looked takes longer and follows.
function startCaptions(picker) {
  $("caption-run").addEventListener("click", () =>
    run($("caption-run"), async () => {
      const image = needed(picker);
      $("caption-results").replaceChildren();
      const words = new Map();
      for (const model of models) {
        const answer = await post("v1/caption", { model, image });
        words.set(model, element("p", "words", answer.caption));
        $("caption-results").append(card(NAMES[model] ?? model, words.get(model), element("p", "note", answer.caption)));
      }
      for (const model of models) {
        const { evidence } = await post("v1/caption", { model, image, explain: true });
        if (evidence) words.get(model).replaceWith(wordButtons(evidence, showMap($("caption-view"), picker)));
      }
    }),
  );
}

function startAsk(picker) {
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(event.submitter, async () => {
      const form = new FormData(event.target);
      const choices = form.get("choices").split(",").map((choice) => choice.trim()).filter(Boolean);
      const body = { images: [needed(picker)], question: form.get("question") };
      $("ask-results").replaceChildren();
      for (const model of models.filter((name) => name !== "sat")) {
        const answer = await post("v1/ask", choices.length ? { model, ...body, choices } : { model, ...body, explain: true });
        const content = [element("p", "words", answer.answer)];
        if (answer.scores) content.push(scores(answer.scores));
        if (answer.evidence) content[0] = wordButtons(answer.evidence, showMap($("ask-view"), picker));
        $("ask-results").append(card(NAMES[model] ?? model, ...content));
      }
    });
  });
}

function startCompare(left, right) {
  let orders = 0;
  const ask = async () => {
    const form = new FormData($("compare-form"));
    const body = { images: [needed(left), needed(right)], question: form.get("question"), choices: [form.get("a"), form.get("b")] };
    orders += 1;
    for (const model of models.filter((name) => name !== "sat")) {
      const answer = await post("v1/ask", { model, ...body });
      const pair = element("p");
      for (const picker of [left, right]) {
        const image = element("img");
        image.src = picker.photo.url;
        image.alt = "";
        image.height = 48;
        pair.append(image, " ");
      }
      const content = [pair, element("p", "words", answer.answer), scores(answer.scores)];
      $("compare-results").prepend(card(`${NAMES[model] ?? model} · ${text("order")} ${orders}`, ...content));
    }
  };
  $("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(event.submitter, ask);
  });
  $("swap").addEventListener("click", () =>
    run($("swap"), async () => {
      needed(left);
      needed(right);
      const first = left.photo;
      left.set(right.photo);
      right.set(first);
      await ask();
    }),
  );
}

function startFewshot(query, examples) {
  const shots = [];
  const add = () => {
    const row = element("div", "shot");
    const host = element("div", "picker");
    const label = element("label");
    const caption = element("span", "", text("name"));
    caption.dataset.text = "name";
    const input = element("input");
    input.maxLength = 100;
    label.append(caption, input);
    const remove = element("button", "", text("remove"));
    remove.type = "button";
    remove.dataset.text = "remove";
    const shot = { picker: new Picker(host, examples, () => {}, (message) => say(message, true)), input };
    remove.addEventListener("click", () => {
      shots.splice(shots.indexOf(shot), 1);
      row.remove();
    });
    row.append(host, label, remove);
    $("shots").append(row);
    shots.push(shot);
  };
  $("add-shot").addEventListener("click", add);
  add();
  add();
  $("fewshot-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(event.submitter, async () => {
      const given = shots.filter((shot) => shot.picker.photo && shot.input.value.trim());
      const names = [...new Set(given.map((shot) => shot.input.value.trim()))];
      const body = {
        model: "flamingo",
        image: needed(query),
        shots: given.map((shot) => ({ image: shot.picker.photo.url, text: `${new FormData(event.target).get("prompt")} ${shot.input.value.trim()}`.trim() })),
        prompt: new FormData(event.target).get("prompt"),
      };
      const free = await post("v1/complete", body);
      const content = [element("p", "words", free.text)];
      if (names.length > 1) content.push(scores((await post("v1/complete", { ...body, choices: names })).scores));
      $("fewshot-results").replaceChildren(card(NAMES.flamingo, ...content));
    });
  });
}

function startChat(picker) {
  let messages = [];
  const line = (who, content, image) => {
    const item = element("li");
    item.append(element("span", "who", `${who} `));
    if (image) {
      const shown = element("img");
      shown.src = image;
      shown.alt = "";
      item.append(shown);
    }
    const body = element("span", "", content);
    item.append(body);
    $("turns").append(item);
    return body;
  };
  $("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(event.submitter, async () => {
      const said = new FormData(event.target).get("message");
      const image = picker.photo?.url;
      const parts = image ? [{ type: "image_url", image_url: { url: image } }] : [];
      const next = [...messages, { role: "user", content: [...parts, { type: "text", text: said }] }];
      line(text("person"), said, image);
      const answer = line(NAMES.flamingo, "…");
      try {
        let written = "";
        for await (const piece of chatPieces("flamingo", next)) {
          written += piece;
          answer.textContent = written;
        }
        messages = [...next, { role: "assistant", content: written }];
        picker.set(null);
        event.target.reset();
      } catch (error) {
        answer.textContent = error.message;
        throw error;
      }
    });
  });
  $("chat-new").addEventListener("click", () => {
    messages = [];
    $("turns").replaceChildren();
  });
}

function startFind() {
  $("find-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(event.submitter, async () => {
      const { results } = await post("v1/find", { query: new FormData(event.target).get("query") });
      $("find-results").replaceChildren(
        ...results.map((found) => {
          const image = element("img");
          image.src = found.thumbnail;
          image.alt = found.name;
          return card(`${found.rank}. ${found.name}`, image);
        }),
      );
    });
  });
}

async function showGates() {
  const { gates } = await get("v1/gates");
  const head = element("tr");
  for (const key of ["block", "attention", "feedForward"]) {
    const cell = element("th", "", text(key));
    cell.scope = "col";
    cell.dataset.text = key;
    head.append(cell);
  }
  const rows = gates.map(({ block, attention, feed_forward: feedForward }) => {
    const row = element("tr");
    const name = element("th", "", String(block));
    name.scope = "row";
    row.append(name);
    for (const value of [attention, feedForward]) {
      const cell = element("td", "", `${value.toFixed(3)} `);
      const meter = element("meter");
      meter.value = Math.abs(value);
      cell.append(meter);
      row.append(cell);
    }
    return row;
  });
  $("gates").replaceChildren(head, ...rows);
}

async function showMasks(sentence) {
  const { labels, masks } = await post("v1/masks", { text: sentence });
  $("masks").replaceChildren(
    ...Object.entries(masks).map(([name, rows]) => {
      const table = element("table", "mask");
      table.setAttribute("role", "img");
      table.setAttribute("aria-label", text(name));
      rows.forEach((row, index) => {
        const line = element("tr");
        line.append(element("th", "", labels[index]));
        for (const on of row) line.append(element("td", on ? "on" : ""));
        table.append(line);
      });
      const scroll = element("div", "scroll");
      scroll.append(table);
      const sentenceOf = element("p", "note", text(name));
      sentenceOf.dataset.text = name;
      return card(name.toUpperCase(), scroll, sentenceOf);
    }),
  );
}

async function waitForModels() {
  for (;;) {
    const response = await fetch("readyz");
    const state = await response.json();
    if (response.ok) {
      models = Object.keys(state).filter((name) => state[name] === "ready");
      return;
    }
    say(text("loading"));
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function start() {
  startLanguage($("language"));
  const { examples, library } = await get("v1/page");
  const pickers = startPickers(examples);
  startCaptions(pickers.caption);
  startAsk(pickers.ask);
  startCompare(pickers.left, pickers.right);
  startFewshot(pickers.query, examples);
  startChat(pickers.chat);
  startFind();
  if (!library) {
    const note = element("p", "note", text("noLibrary"));
    note.dataset.text = "noLibrary";
    $("find-form").replaceWith(note);
  }
  $("mask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run(event.submitter, () => showMasks(new FormData(event.target).get("text")));
  });
  await waitForModels();
  say(models.map((name) => NAMES[name] ?? name).join(" · "));
  document.documentElement.dataset.ready = "true";
  await showMasks("a cat wearing sunglasses");
  if (models.includes("flamingo")) await showGates();
}

start().catch((error) => say(error.message, true));
